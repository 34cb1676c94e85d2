"""Every process finds, in compose and in a cluster, the settings it needs; each finds no other's secrets."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import generate
import pytest
from cell import _SECRET_SETTINGS as SECRET_SETTINGS
from cell import host_of, kind_secrets, servers_of_compose, settings_of
from chassis.settings import ServiceSettings, load
from compose import config
from credentials import Credentials, load_or_create
from identity.main import IdentitySettings
from judges import Tools
from ledger_transfer.settings import LedgerSettings
from manifests import Resource
from notifier.settings import Settings as NotifierSettings
from rabbitmq import SERVICES
from search.settings import SearchSettings
from sync_gateway.settings import Settings as GatewaySettings
from wealth.settings import WealthSettings

from simulators import settings as platform_settings

SETTINGS: dict[str, type[ServiceSettings]] = {
    "identity": IdentitySettings,
    "ledger-transfer": LedgerSettings,
    "sync-gateway": GatewaySettings,
    "wealth": WealthSettings,
    "notifier": NotifierSettings,
    "search": SearchSettings,
}


@pytest.fixture
def credentials(tmp_path: Path) -> Credentials:
    return load_or_create(tmp_path / "secrets.json")


def of_compose(credentials: Credentials) -> dict[str, dict[str, str]]:
    return settings_of(
        servers_of_compose(credentials), credentials, origin="http://localhost:4025", network="172.30.25"
    )


def test_there_are_settings_for_every_service() -> None:
    assert {host_of(service) for service in SERVICES} == set(SETTINGS)


# --- compose --------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SETTINGS)
def test_compose_tells_each_service_what_it_needs(credentials: Credentials, service: str) -> None:
    settings = load(SETTINGS[service], of_compose(credentials)[service])
    assert "@postgres:5432/" in settings.database_url
    assert "@rabbitmq:5672/sangam" in settings.amqp_url
    assert (settings.http_host, settings.http_port) == ("0.0.0.0", 8080)
    assert settings.token_issuer == "http://localhost:4025"


def test_compose_tells_the_simulators_and_relays(credentials: Credentials) -> None:
    settings = of_compose(credentials)
    for platform in ("bfc", "vyomo"):
        told = platform_settings.load(platform, settings[f"simulator-{platform}"])
        assert told.feed_url == f"http://nginx:8080/api/sync/feeds/{platform}"
        assert (told.http_host, told.http_port) == ("0.0.0.0", 8080)
    for relay in ("relay-1", "relay-2"):
        assert settings[relay]["EVENT_STORE_URL"].startswith("postgresql://relay:")
        assert settings[relay]["ANCHOR_FILE"] == f"/data/{relay}.anchors"


def test_addresses_are_those_that_compose_gives(tools: Tools, credentials: Credentials) -> None:
    project = config(tools)
    settings = of_compose(credentials)

    def address(container: str) -> str:
        found: str = project["services"][container]["networks"]["edge"]["ipv4_address"]
        return found

    assert settings["identity"]["TRUSTED_PROXIES"] == address("nginx")
    simulators = ",".join(f"{address(f'simulator-{name}')}:8080" for name in ("bfc", "vyomo"))
    assert settings["sync-gateway"]["WEBHOOK_ALLOWED_TARGETS"] == simulators
    assert settings["notifier"]["ALLOWED_TARGETS"] == simulators


def test_each_container_gets_its_own_settings_and_the_image_has_their_folders(
    tools: Tools, credentials: Credentials
) -> None:
    project = config(tools)["services"]
    volumes = {
        name: {volume["source"]: volume for volume in service.get("volumes", []) if volume["type"] == "volume"}
        for name, service in project.items()
    }
    written = {volume["target"].rpartition("/")[2] for volume in volumes["provision"].values()} - {"secrets"}
    assert written == set(of_compose(credentials))
    for process in written:
        mounted = volumes[process][f"settings-{process}"]
        assert (mounted["target"], mounted["read_only"]) == ("/run/sangam", True)
        others = {name for name in volumes[process] if name.startswith(("settings-", "secrets"))}
        assert others == {f"settings-{process}"}
    dockerfile = (Path(generate.HERE).parent / "docker" / "Dockerfile").read_text()
    folders = re.search(r"for name in (.*?); do", dockerfile.replace("\\\n", ""))
    assert folders is not None
    assert set(folders[1].split()) == written | {"secrets", "postgres", "rabbitmq"}


def test_secrets_are_made_once(tmp_path: Path) -> None:
    for name in ("secrets", "postgres", "rabbitmq"):
        (tmp_path / name).mkdir()

    # As in the container: root's right to write to what it may not is dropped there.
    confined = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    program = [*confined, sys.executable, str(generate.HERE.parent / "docker" / "cell.py"), "secrets", str(tmp_path)]

    def made() -> tuple[str, str]:
        done = subprocess.run(program, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        broker = json.loads((tmp_path / "rabbitmq" / "definitions.json").read_text())
        assert {user["name"] for user in broker["users"]} == {*SERVICES, "relay", "admin"}
        return (tmp_path / "secrets" / "secrets.json").read_text(), (tmp_path / "postgres" / "password").read_text()

    first = made()
    assert made() == first
    assert (tmp_path / "secrets" / "secrets.json").stat().st_mode & 0o077 == 0


# --- Kubernetes -----------------------------------------------------------------------------------


def environment(resources: list[Resource], workload: str, secrets: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """What a container of `workload` finds in its environment."""
    container = next(
        each["spec"]["template"]["spec"]["containers"][0]
        for each in resources
        if each["kind"] in ("Deployment", "StatefulSet", "Job") and each["metadata"]["name"] == workload
    )
    maps: dict[str, Any] = {
        each["metadata"]["name"]: each.get("data", {}) for each in resources if each["kind"] == "ConfigMap"
    }
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        if "configMapRef" in source:
            found |= maps[source["configMapRef"]["name"]]
        else:
            found |= secrets[source["secretRef"]["name"]]
    return found | {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}


def keys_by_secret(resources: list[Resource]) -> dict[str, set[str]]:
    return {
        each["spec"]["target"]["name"]: set(each["spec"]["target"]["template"]["data"])
        for each in resources
        if each["kind"] == "ExternalSecret"
    }


@pytest.mark.parametrize("service", SETTINGS)
def test_a_cluster_tells_each_service_what_it_needs(
    overlays: dict[str, list[Resource]], credentials: Credentials, service: str
) -> None:
    secrets = kind_secrets(credentials)
    settings = load(SETTINGS[service], environment(overlays["kind"], service, secrets))
    assert settings.token_issuer == "http://localhost:4025"
    assert "@sangam-db-rw:5432/" in settings.database_url
    assert "sslmode=verify-full" in settings.event_store_url
    # ExternalSecrets make the same names: then production starts as kind does.
    production = load(SETTINGS[service], environment(overlays["production"], service, secrets))
    assert production.token_issuer == "https://sangam.example"


def test_production_and_kind_have_secrets_of_the_same_names(
    overlays: dict[str, list[Resource]], credentials: Credentials
) -> None:
    production = keys_by_secret(overlays["production"])
    for name, values in kind_secrets(credentials).items():
        if name in production:
            extra = {"PASSWORD_MONITOR"} if name == "sangam-migrate" else set()
            assert production[name] - extra == set(values), name
    only = production.keys() - kind_secrets(credentials).keys()
    assert only == {"sangam-keda"}


def test_no_secret_is_in_a_config_map(overlays: dict[str, list[Resource]]) -> None:
    for resources in overlays.values():
        names = {name for each in resources if each["kind"] == "ConfigMap" for name in each.get("data", {})}
        assert not [name for name in names if name.startswith(SECRET_SETTINGS)]


def test_simulators_in_kind(overlays: dict[str, list[Resource]], credentials: Credentials) -> None:
    for platform in ("bfc", "vyomo"):
        told = environment(overlays["kind"], f"simulator-{platform}", kind_secrets(credentials))
        assert platform_settings.load(platform, told).feed_url == f"http://edge:8080/api/sync/feeds/{platform}"


def test_keda_watches_queues_that_exist(overlays: dict[str, list[Resource]]) -> None:
    watched = {
        trigger["metadata"]["queueName"]
        for each in overlays["production"]
        if each["kind"] == "ScaledObject"
        for trigger in each["spec"]["triggers"]
        if trigger["type"] == "rabbitmq"
    }
    sources = {service: "".join(_sources(service)) for service in SERVICES}
    existing = {
        f"{service}.{name}"
        for service, text in sources.items()
        for name in ("projections", *re.findall(r'runtime\.consume\(\s*"(\w+)"', text))
    }
    # notifier's and wealth's read models are built by the consumer every service has.
    assert watched == existing


def _sources(service: str) -> list[str]:
    root = Path(generate.HERE).parents[1] / "services" / host_of(service) / "src"
    return [path.read_text() for path in root.rglob("*.py")]


# --- generated files ------------------------------------------------------------------------------


def test_what_is_generated_is_fresh() -> None:
    for path, text in generate.generated().items():
        assert path.read_text() == text, f"{path.name}: .venv/bin/python deploy/k8s/generate.py write"


def test_every_setting_is_in_the_table() -> None:
    documented = set(re.findall(r"`([A-Z_]{4,})`", (generate.HERE.parent / "README.md").read_text()))
    for service, kind in SETTINGS.items():
        for field in kind.__struct_fields__:
            assert field.upper() in documented, f"deploy/README.md does not name {field.upper()} of {service}"


def test_the_image_is_built_from_every_member_of_the_workspace() -> None:
    root = generate.HERE.parents[1]
    dockerfile = (root / "deploy" / "docker" / "Dockerfile").read_text()
    members = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]["members"]
    for folder in (
        folder for member in members for folder in root.glob(member) if (folder / "pyproject.toml").exists()
    ):
        path = folder.relative_to(root)
        assert f"COPY {path}/pyproject.toml {path}/\n" in dockerfile, path


def test_the_image_has_what_its_programs_import() -> None:
    """The image is built without the group `dev`; nothing of that group may be needed to provision."""
    groups = tomllib.loads((generate.HERE.parents[1] / "pyproject.toml").read_text())["dependency-groups"]
    development = {re.split(r"[^\w.-]", each)[0].lower() for each in groups["dev"] if isinstance(each, str)}
    product = {re.split(r"[^\w.-]", each)[0].lower() for each in groups["stack"]} | {"aiohttp", "joserfc"}
    hidden = [
        module
        for module, brought_by in packages_distributions().items()
        if {name.lower() for name in brought_by} & (development - product)
    ]
    assert {"psutil", "aiohttp"}.isdisjoint(hidden)
    assert {"yaml", "pytest", "testcontainers"} <= set(hidden)
    program = f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); import cell, healthcheck"
    folders = [str(generate.HERE.parent / name) for name in ("docker", "local")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv = ['x']; sys.path[:0] = {folders!r}; {program}"],
        capture_output=True,
        text=True,
        env={"HTTP_PORT": "1"},
    )
    # healthcheck asks at once, and nobody listens on port 1.
    assert "Connection refused" in done.stderr, done.stderr
