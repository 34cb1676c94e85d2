"""What this service needs beyond every service's settings."""

from typing import Annotated

import msgspec
from chassis.settings import Secret, ServiceSettings


class Settings(ServiceSettings, frozen=True, kw_only=True):
    feed_secret_bfc: Secret
    """`whsec_…`: signs the bank's feed."""
    feed_secret_vyomo: Secret
    """`whsec_…`: signs the broker's feed."""
    allowed_origins: str = ""
    """Origins, separated by commas, whose pages may open the WebSocket besides our own origin's."""
    websocket_frames_max: Annotated[int, msgspec.Meta(ge=10)] = 1000
    """Frames that may wait for one client; one more and it is closed with 4008."""
