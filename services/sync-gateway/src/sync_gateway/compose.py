"""The body of an announcement to a platform, as of the moment it is sent."""

from uuid import UUID

import msgspec

from sync_gateway.announcements import PROFILE_ANNOUNCED
from sync_gateway.profiles import Profiles


class Composer:
    """Puts a profile's values in: they are nowhere kept in the clear."""

    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles

    async def compose(self, announced_type: str, body: bytes) -> bytes | None:
        """The whole body; None where there is nothing to tell (any more)."""
        if announced_type != PROFILE_ANNOUNCED:
            return body
        message = msgspec.json.decode(body)
        known = await self._profiles.load(UUID(message.pop("user_id")))
        if known.version == 0:
            return None
        return msgspec.json.encode({**message, "data": {"version": known.version, "fields": known.values()}})
