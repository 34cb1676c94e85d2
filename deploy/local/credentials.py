"""The secrets of a stack: random, made at its first start, kept in a file that only its owner can read."""

import base64
import json
import secrets
from pathlib import Path
from typing import NamedTuple

from postgres import SUPERUSER
from rabbitmq import ADMIN, RELAY, SERVICES

PLATFORMS = ("bfc", "vyomo")


class Credentials(NamedTuple):
    """Every secret of one stack."""

    passwords: dict[str, str]
    """By role and broker user: the services, `relay`, `admin` (broker) and `postgres` (server)."""
    cursor_secrets: dict[str, str]
    """By service."""
    identity_key: str
    """Base64 of 32 bytes."""
    subject_master_key: str
    """Base64 of 32 bytes: wraps the keys of the data subjects."""
    vapid_private_key: str
    """Base64url of 32 bytes: signs web push messages."""
    feed_secrets: dict[str, str]
    """By platform, `whsec_…`."""
    announce_secrets: dict[str, str]
    """By platform, `whsec_…`: what Sangam tells the platform. Never that of its feed: a message of one must not pass
    for one of the other."""
    gateway_key: str
    """Base64 of 32 bytes."""
    ops_client_id: str
    ops_client_secret: str
    demo_email: str
    demo_password: str


def load_or_create(path: Path) -> Credentials:
    """The credentials in `path`; what it does not hold yet is made and added."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    fresh = _generate()._asdict()
    for name, value in kept.items():
        if isinstance(value, dict):
            fresh[name].update(value)
        else:
            fresh[name] = value
    if fresh != kept:
        write_private(path, json.dumps(fresh, indent=1))
    return Credentials(**fresh)


def write_private(path: Path, text: str) -> None:
    """Replace `path` in one step by a file that only its owner can read."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    beside.touch(mode=0o600)
    beside.write_text(text)
    beside.replace(path)


def _generate() -> Credentials:
    return Credentials(
        passwords={name: secrets.token_urlsafe(24) for name in (*SERVICES, RELAY, ADMIN, SUPERUSER)},
        cursor_secrets={service: secrets.token_urlsafe(32) for service in SERVICES},
        identity_key=base64.b64encode(secrets.token_bytes(32)).decode(),
        subject_master_key=base64.b64encode(secrets.token_bytes(32)).decode(),
        vapid_private_key=base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode(),
        feed_secrets={
            platform: "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode() for platform in PLATFORMS
        },
        announce_secrets={
            platform: "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode() for platform in PLATFORMS
        },
        gateway_key=base64.b64encode(secrets.token_bytes(32)).decode(),
        ops_client_id=f"ops-{secrets.token_hex(4)}",
        ops_client_secret=secrets.token_urlsafe(32),
        demo_email="asha.demo@sangam.example",
        demo_password=secrets.token_urlsafe(18),
    )
