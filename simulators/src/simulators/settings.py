"""What a platform is told by its environment; it does not start on a guess."""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

PlatformName = Literal["bfc", "vyomo"]
PLATFORMS: tuple[PlatformName, ...] = ("bfc", "vyomo")
SECRET_BYTES_MIN = 24
"""Standard Webhooks asks for keys of 24 to 64 bytes."""


class SettingsError(Exception):
    """One or more settings are missing or unusable; the message names every one of them."""


class PlatformSettings(NamedTuple):
    """Settings of one simulated platform."""

    platform: PlatformName
    http_port: int
    feed_url: str
    """Where events are pushed: `…/api/sync/feeds/<platform>`."""
    feed_secret: str
    """`whsec_…`, shared with sync-gateway."""
    key_file: Path
    """ES256 private key in PEM form; created when missing."""
    state_dir: Path | None
    """Where customers and events survive a restart; None keeps them in memory."""
    announce_secret: str | None = None
    """`whsec_…`: Sangam signs with it what it announces. Without it, announcements are listed and not acted upon."""
    http_host: str = "127.0.0.1"


def valid_secret(secret: str) -> bool:
    """True for `whsec_` and the base64 form of at least 24 bytes."""
    if not secret.startswith("whsec_"):
        return False
    try:
        return len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) >= SECRET_BYTES_MIN
    except binascii.Error:
        return False


def load(platform: str, environ: Mapping[str, str]) -> PlatformSettings:
    """Read the settings of `platform`.

    Raises:
        SettingsError: names every missing or unusable setting at once.
    """
    wrong: list[str] = []
    name: PlatformName | None = next((known for known in PLATFORMS if known == platform), None)
    if name is None:
        wrong.append(f"platform is {platform!r}, must be one of: {', '.join(PLATFORMS)}")
    port_text = environ.get("PLATFORM_HTTP_PORT", "")
    port = int(port_text) if port_text.isascii() and port_text.isdigit() else 0
    if not 0 < port < 65536:
        wrong.append("PLATFORM_HTTP_PORT must be a port number")
    feed_url = environ.get("FEED_URL", "")
    if urlsplit(feed_url).scheme not in ("http", "https") or not urlsplit(feed_url).netloc:
        wrong.append("FEED_URL must be an http(s) URL")
    feed_secret = environ.get("FEED_SECRET", "")
    if not valid_secret(feed_secret):
        wrong.append(f"FEED_SECRET must be whsec_<base64 of at least {SECRET_BYTES_MIN} bytes>")
    key_file = environ.get("PLATFORM_KEY_FILE", "")
    if not key_file:
        wrong.append("PLATFORM_KEY_FILE must name the file of the ES256 key")
    announce_secret = environ.get("ANNOUNCE_SECRET") or None
    if announce_secret is not None and not valid_secret(announce_secret):
        wrong.append(f"ANNOUNCE_SECRET must be whsec_<base64 of at least {SECRET_BYTES_MIN} bytes>")
    if wrong or name is None:
        raise SettingsError("; ".join(wrong))
    state_dir = environ.get("PLATFORM_STATE_DIR")
    return PlatformSettings(
        platform=name,
        http_port=port,
        feed_url=feed_url,
        feed_secret=feed_secret,
        key_file=Path(key_file),
        state_dir=Path(state_dir) if state_dir else None,
        announce_secret=announce_secret,
        http_host=environ.get("PLATFORM_HTTP_HOST") or "127.0.0.1",
    )
