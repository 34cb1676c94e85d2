"""What this service needs to be told."""

from typing import Annotated, Literal

import msgspec
from chassis.money import DECIMALS
from chassis.settings import SealingSettings, Secret


class Settings(SealingSettings, frozen=True, kw_only=True):
    """A channel without its settings is off: what would go there is recorded as not sent, and why."""

    allowed_origins: str = ""
    """Origins besides our own whose pages may open `/ws/notifications`, joined by commas."""

    smtp_host: str | None = None
    smtp_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 587
    smtp_security: Literal["none", "starttls", "tls"] = "starttls"
    smtp_user: str | None = None
    smtp_password: Secret | None = None
    mail_from: str = "Sangam <notifications@sangam.example>"

    vapid_private_key: Secret | None = None
    """RFC 8292: the P-256 key of our push messages, 32 bytes in base64url. Browsers subscribe for its public half."""
    vapid_subject: str = "mailto:operations@sangam.example"

    allowed_targets: str = ""
    """`address:port` of our own network that web push and webhooks may go to, joined by commas. Everything else there
    is refused."""
    send_timeout_s: float = 10.0

    large_floor_minor: str = "INR=2500000"
    """Below this no amount is large, in minor units: `currency=amount`, with commas between."""

    apprise_urls: Secret | None = None
    """Further services for what is critical, as Apprise names them, joined by spaces. Needs the extra `apprise`. One in
    our own network must be in `allowed_targets`, too."""

    def __post_init__(self) -> None:
        """Raises:
        ValueError: `retention_days` or `large_floor_minor` is not usable.
        """
        super().__post_init__()
        _ = self.large_floors_minor

    @property
    def large_floors_minor(self) -> dict[str, int]:
        """`large_floor_minor` by currency."""
        floors: dict[str, int] = {}
        for entry in filter(None, (entry.strip() for entry in self.large_floor_minor.split(","))):
            currency, _, minor = entry.partition("=")
            if currency not in DECIMALS or not (minor.isascii() and minor.isdigit()):
                raise ValueError("LARGE_FLOOR_MINOR is not usable: it is currency=minor units, with commas between")
            floors[currency] = int(minor)
        return floors
