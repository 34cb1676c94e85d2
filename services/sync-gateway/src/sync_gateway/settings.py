"""What this service needs beyond every service's settings."""

from typing import Annotated

import msgspec
from chassis.settings import SealingSettings, Secret, check_keys


class Settings(SealingSettings, frozen=True, kw_only=True):
    feed_secret_bfc: Secret
    """`whsec_…`: signs the bank's feed."""
    feed_secret_vyomo: Secret
    """`whsec_…`: signs the broker's feed."""
    allowed_origins: str = ""
    """Origins, separated by commas, whose pages may open the WebSocket besides our own origin's."""
    websocket_frames_max: Annotated[int, msgspec.Meta(ge=10)] = 1000
    """Frames that may wait for one client; one more and it is closed with 4008."""
    feed_secret_bfc_next: Secret = Secret("")
    """Accepted beside the other one while the bank's secret is being rotated."""
    feed_secret_vyomo_next: Secret = Secret("")
    bfc_url: str | None = None
    """Where the bank takes announcements and answers what we ask; without it, neither happens."""
    vyomo_url: str | None = None
    announce_secret_bfc: Secret = Secret("")
    """`whsec_…`: signs what we announce to the bank."""
    announce_secret_vyomo: Secret = Secret("")
    gateway_key: Secret
    """Base64 of 32 bytes: wraps the key that webhook secrets are sealed with. While it is replaced, the new and the
    former one with a comma between."""
    webhook_allowed_targets: str = ""
    """Addresses and ports (`127.0.0.1:4111`), separated by commas, that webhooks may go to besides public ones."""
    webhook_retry_delays_s: str = "2,10"
    """Pauses before the attempts after the first, where a webhook does not say otherwise."""
    webhook_timeout_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 10.0
    webhook_quarantine_after: Annotated[int, msgspec.Meta(ge=1)] = 5
    """Failed attempts in a row."""
    webhook_probe_s: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """Before a webhook in quarantine is probed first; doubles up to an hour."""

    def __post_init__(self) -> None:
        """Raises:
        ValueError: a setting is not usable.
        """
        super().__post_init__()
        check_keys("GATEWAY_KEY", self.gateway_key)
