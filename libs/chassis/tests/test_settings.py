"""Settings: everything that is wrong is said at once, and no weak secret starts a service."""

import base64

import pytest
from chassis.settings import SealingSettings, Secret, ServiceSettings, SettingsError, check_keys, load

GOOD = {
    "DATABASE_URL": "postgresql://wealth:Zq8vT2@db.internal/wealth",
    "EVENT_STORE_URL": "postgresql://wealth:Zq8vT2@db.internal/event_store",
    "AMQP_URL": "amqp://wealth:Zq8vT2@mq.internal/sangam",
    "HTTP_PORT": "4105",
    "TOKEN_ISSUER": "http://localhost:4025",
    "CURSOR_SECRET": "b1Vw0q9ZtYx4LrS7",
}


def test_reads_upper_cased_names_with_defaults() -> None:
    settings = load(ServiceSettings, GOOD)
    assert settings.http_port == 4105
    assert settings.database_url == GOOD["DATABASE_URL"]
    assert settings.http_host == "127.0.0.1"
    assert settings.otel_exporter_otlp_endpoint is None


def test_names_every_problem_at_once_and_no_value() -> None:
    environ = GOOD | {"HTTP_PORT": "70000", "CURSOR_SECRET": "tooshort", "AMQP_URL": ""}
    with pytest.raises(SettingsError) as caught:
        load(ServiceSettings, environ)
    message = str(caught.value)
    assert len(caught.value.problems) == 3
    assert all(name in message for name in ("HTTP_PORT", "CURSOR_SECRET", "AMQP_URL"))
    assert "tooshort" not in message


@pytest.mark.parametrize(
    "secret",
    [
        "changeme",
        "secret",
        "password",
        "guest",
        "changeme-changeme",
        "CHANGE_ME_PLEASE_1234",
        "passwordpassword",
        "aaaaaaaaaaaaaaaaaaaaaaaa",
        "1212121212121212",
        "b1Vw0q9ZtYx4LrS",
    ],
)
def test_weak_secret_does_not_start(secret: str) -> None:
    with pytest.raises(SettingsError, match="CURSOR_SECRET"):
        load(ServiceSettings, GOOD | {"CURSOR_SECRET": secret})


@pytest.mark.parametrize(
    "url",
    [
        "amqp://guest:guest@mq.internal/",
        "amqp://sangam:change%6De@10.0.0.7/",
        "amqp://sangam:Zq8vT2,changeme@mq.internal/",
    ],
)
def test_default_password_in_a_url_does_not_start(url: str) -> None:
    with pytest.raises(SettingsError, match="AMQP_URL contains a well-known default password"):
        load(ServiceSettings, GOOD | {"AMQP_URL": url})


def test_urls_may_be_short_without_password_or_local_with_a_default_one() -> None:
    settings = load(
        ServiceSettings, GOOD | {"DATABASE_URL": "postgres://h/d", "AMQP_URL": "amqp://guest:guest@localhost/"}
    )
    assert settings.database_url == "postgres://h/d"


def test_a_url_may_list_passwords() -> None:
    listed = {name: value.replace("Zq8vT2", "Zq8vT2,w3Lk9P%2C") for name, value in GOOD.items()}
    assert load(ServiceSettings, listed).amqp_url == "amqp://wealth:Zq8vT2,w3Lk9P%2C@mq.internal/sangam"


@pytest.mark.parametrize("variable", ["DATABASE_URL", "EVENT_STORE_URL", "AMQP_URL", "SUBJECT_KEYS_URL"])
def test_a_malformed_url_does_not_start_and_tells_nothing_of_its_password(variable: str) -> None:
    good = {**GOOD, "SUBJECT_KEYS_URL": GOOD["DATABASE_URL"], "SUBJECT_MASTER_KEY": "b1Vw0q9ZtYx4LrS7"}
    load(SealingSettings, good)
    for password in ("Zq8v/T2", "Zq8v@T2", "Zq8vT2,"):
        with pytest.raises(SettingsError, match=f"{variable} (must look like|has an empty password)") as caught:
            load(SealingSettings, {**good, variable: good[variable].replace("Zq8vT2", password)})
        assert "Zq8v" not in str(caught.value)


def test_secrets_do_not_show_themselves() -> None:
    settings = load(ServiceSettings, GOOD)
    assert "b1Vw0q9ZtYx4LrS7" not in repr(settings)
    assert "Zq8vT2" not in repr(settings)
    assert repr(Secret("b1Vw0q9ZtYx4LrS7")) == "'***'"


def test_keys_that_wrap_others() -> None:
    key = base64.b64encode(bytes(range(32))).decode()
    check_keys("IDENTITY_KEY", key)
    check_keys("IDENTITY_KEY", f"{key},{key}")
    for unusable in ("", "not base64!", base64.b64encode(bytes(31)).decode(), f"{key},", f"{key};{key}"):
        with pytest.raises(ValueError, match="IDENTITY_KEY: the master key must"):
            check_keys("IDENTITY_KEY", unusable)
