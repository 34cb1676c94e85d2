"""Settings: read from the environment once, checked completely; weak and default secrets are refused."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args
from urllib.parse import unquote, urlsplit

import msgspec
from events import passwords
from events.retention import days_of
from events.sealing import raw_keys

SECRET_LENGTH_MIN = 16

_WELL_KNOWN = frozenset(
    {
        "admin",
        "changeit",
        "changeme",
        "default",
        "demo",
        "example",
        "guest",
        "letmein",
        "passw0rd",
        "password",
    }
    | {"password1", "postgres", "rabbitmq", "root", "sangam", "secret", "test", "topsecret", "user", "whsec"}
)
_PLACEHOLDERS = ("changeme", "change-me", "change_me", "replaceme", "replace-me", "replace_me", "your-secret")
_DISTINCT_CHARACTERS_MIN = 6
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Secret(str):
    """A value that must not appear in logs or tracebacks: its repr is `***`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class SettingsError(Exception):
    """The environment does not hold usable settings. `problems` names every one of them."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("cannot start: " + "; ".join(problems))
        self.problems = problems


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service needs. Services add their own fields in a subclass; names are upper-cased."""

    database_url: Secret
    event_store_url: Secret
    amqp_url: Secret
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    token_issuer: str
    cursor_secret: Secret
    log_level: str = "info"
    otel_exporter_otlp_endpoint: str | None = None
    retention_days: str = ""
    """How long rows are kept, where not as their rules say: `table=days`, with commas between (`events.retention`)."""

    def __post_init__(self) -> None:
        """Raises:
        ValueError: `retention_days` or a server's URL is not usable.
        """
        days_of(self.retention_days)
        check_url("DATABASE_URL", self.database_url, passwords.POSTGRES)
        check_url("EVENT_STORE_URL", self.event_store_url, passwords.POSTGRES)
        check_url("AMQP_URL", self.amqp_url, passwords.BROKER)


class SealingSettings(ServiceSettings, frozen=True, kw_only=True):
    """Of a service that seals or opens personal data; it gets `Runtime.subject_keys`."""

    subject_keys_url: Secret
    subject_master_key: Secret

    def __post_init__(self) -> None:
        super().__post_init__()
        check_url("SUBJECT_KEYS_URL", self.subject_keys_url, passwords.POSTGRES)


def check_url(variable: str, url: str, schemes: tuple[str, ...]) -> None:
    """Raises:
    ValueError: it is no URL of a server (`events.passwords`); the message names the variable and nothing of the URL.
    """
    try:
        passwords.check(url, schemes)
    except ValueError as error:
        raise ValueError(f"{variable} {error}") from None


def check_keys(variable: str, text: str) -> None:
    """Raises:
    ValueError: the text holds no keys that wrap others (`events.sealing`); the message names the variable.
    """
    try:
        raw_keys(text)
    except ValueError as error:
        raise ValueError(f"{variable}: {error}") from None


S = TypeVar("S", bound=msgspec.Struct)


def load(cls: type[S], environ: Mapping[str, str] = os.environ) -> S:
    """The settings of `cls`, one environment variable per field.

    Raises:
        SettingsError: naming every missing, malformed, too short or well-known value at once. Values are
            never part of the message.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(cls):
        variable = field.name.upper()
        text = environ.get(variable, "")
        if text == "":
            if field.required:
                problems.append(f"{variable} is not set")
            continue
        is_secret = Secret in (field.type, *get_args(field.type))  # also where it may be absent
        try:
            values[field.name] = Secret(text) if is_secret else msgspec.convert(text, field.type, strict=False)
        except msgspec.ValidationError as error:
            problems.append(f"{variable} is not usable: {error}")
            continue
        if is_secret and (weakness := _weakness(text)):
            problems.append(f"{variable} {weakness}")
    if problems:
        raise SettingsError(problems)
    try:
        return cls(**values)
    except ValueError as error:
        raise SettingsError([str(error)]) from None


def _weakness(secret: str) -> str | None:
    """Why `secret` must not be used, or None. A URL is judged by the passwords inside it, if it has any."""
    if "://" in secret:
        try:
            parts = [urlsplit(url) for url in passwords.each(secret)]
        except ValueError:
            return "is not a URL"
        # A default password is only bearable where nobody but this machine can connect: RabbitMQ's `guest`.
        is_default = any(each.password and unquote(each.password).lower() in _WELL_KNOWN for each in parts)
        return "contains a well-known default password" if is_default and parts[0].hostname not in _LOOPBACK else None
    lowered = secret.lower()
    if lowered in _WELL_KNOWN or any(placeholder in lowered for placeholder in _PLACEHOLDERS):
        return "is a well-known default"
    if len(secret) < SECRET_LENGTH_MIN:
        return f"is shorter than {SECRET_LENGTH_MIN} characters"
    if len(set(secret)) < _DISTINCT_CHARACTERS_MIN or _repeats_a_known_word(lowered):
        return "is too easy to guess"
    return None


def _repeats_a_known_word(lowered: str) -> bool:
    return any(lowered == (word * (len(lowered) // len(word) + 1))[: len(lowered)] for word in _WELL_KNOWN)
