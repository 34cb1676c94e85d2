"""A user's profile: sealed with the person's own key, so that it is gone once the person is erased."""

from uuid import UUID

import msgspec
from events.sealing import SubjectKeys

from identity.sealing import IdentityKey
from identity.users import User

PLACE = "profile"
_SEALED_BY_IDENTITY = "v1."


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Who a user is. Stored sealed."""

    email: str
    full_name: str
    phone: str


class People:
    """Seals and opens profiles."""

    def __init__(self, keys: SubjectKeys, identity_key: IdentityKey) -> None:
        self._keys = keys
        self._identity_key = identity_key

    async def seal(self, user_id: UUID, profile: Profile) -> str:
        """
        Raises:
            SubjectErased
        """
        return await self._keys.seal(user_id, msgspec.json.encode(profile).decode(), PLACE)

    async def profile(self, user_id: UUID, user: User) -> Profile | None:
        """The user's profile; None for somebody who has been erased, or never was."""
        sealed = user.sealed_profile
        if sealed is None:
            return None
        if sealed.startswith(_SEALED_BY_IDENTITY):  # as registrations were sealed at first
            text: str | bytes | None = self._identity_key.open(sealed, f"user-{user_id}", "sealed_profile")
        else:
            text = await self._keys.open(user_id, sealed, PLACE)
        return None if text is None else msgspec.json.decode(text, type=Profile)
