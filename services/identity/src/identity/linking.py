"""Linking a platform's customer to a user, with proof of ownership signed by the platform."""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from chassis.tokens import Caller
from events.contracts.identity import Platform, PlatformLinkReleased, PlatformLinkTaken
from events.contracts.registry import Event
from events.decisions import Streams
from events.envelope import derived_id, new_id
from events.store import EventStore, StreamAppend, VersionConflict

from identity import users
from identity.assertions import AssertionVerifier
from identity.users import Claim, User

_NONCE_BYTES = 24


class AlreadyLinked(Exception):
    """The platform's customer belongs to another user."""


class Requested(NamedTuple):
    """A link request for the customer to approve in the platform's own app."""

    link_id: UUID
    nonce: str
    expires_at: datetime
    event_id: UUID


class Confirmed(NamedTuple):
    """A link that stands. `event_id` names the event that made it."""

    link_id: UUID
    customer_id: str
    event_id: UUID | None
    """None when an earlier request had linked the same customer to this user."""


class NotLinked(Exception):
    """The user has no customer of that platform."""


class Linking:
    """The two steps of a link: a request with a nonce, and its confirmation by the platform's assertion."""

    def __init__(self, store: EventStore, user_streams: Streams[User], assertions: AssertionVerifier) -> None:
        self._users = user_streams
        self._claims = Streams(store, "platform_link", Claim(), users.evolve_claim)
        self._assertions = assertions

    async def request(self, caller: Caller, platform: Platform, customer_id: str) -> Requested:
        """Opens a request. It says nothing about whether the customer exists or is linked."""
        link_id = new_id()
        nonce = secrets.token_urlsafe(_NONCE_BYTES)
        now = datetime.now(UTC)
        decided = await self._users.execute(
            caller.user_id,
            lambda _: users.request_link(link_id, platform, customer_id, nonce, now),
            event_id=new_id(),
            subject=caller.user_id,
            metadata=caller.metadata(),
        )
        return Requested(link_id, nonce, now + users.LINK_LIFETIME, decided.event_id)

    async def confirm(self, caller: Caller, platform: Platform, link_id: UUID, assertion: str) -> Confirmed:
        """Links the customer, once: confirming the same request again answers the same.

        Raises:
            LinkNotFound, LinkExpired, AlreadyLinked
            AssertionInvalid, PlatformUnavailable
        """
        event_id = derived_id(link_id, "confirmed")
        now = datetime.now(UTC)
        user, _ = await self._users.load(caller.user_id)
        if link := users.confirmed_link(user, link_id, platform):
            return Confirmed(link_id, link.customer_id, event_id)
        request = users.open_request(user, link_id, platform, now)
        customer_id = request.customer_id
        await self._assertions.verify(assertion, platform=platform, customer_id=customer_id, nonce=request.nonce)
        claim_id = users.platform_link_id(platform, customer_id)
        taken = PlatformLinkTaken(user_id=caller.user_id, platform=platform, platform_customer_id=customer_id)
        while True:
            claim, version = await self._claims.load(claim_id)
            if claim.holder not in (None, caller.user_id):
                raise AlreadyLinked
            try:
                decided = await self._users.execute(
                    caller.user_id,
                    lambda current: users.confirm_link(current, link_id, platform, now),
                    event_id=event_id,
                    subject=caller.user_id,
                    metadata=caller.metadata(),
                    also=[StreamAppend(f"platform_link-{claim_id}", (taken,), version)],
                )
            except VersionConflict:
                continue  # the claim moved: look whose it is now
            return Confirmed(link_id, customer_id, event_id if decided.events else None)

    async def remove(self, caller: Caller, platform: Platform) -> tuple[list[str], UUID]:
        """Unlinks the caller's customers of the platform, which are free for another user then. Gives their ids.

        Raises:
            NotLinked
        """
        while True:
            user, _ = await self._users.load(caller.user_id)
            linked = [link for link in user.links if link.platform == platform]
            if not linked:
                raise NotLinked
            parts = []
            for link in linked:
                claim_id = users.platform_link_id(platform, link.customer_id)
                _, version = await self._claims.load(claim_id)
                released = PlatformLinkReleased(
                    user_id=caller.user_id, platform=platform, platform_customer_id=link.customer_id
                )
                parts.append(StreamAppend(f"platform_link-{claim_id}", (released,), version))

            def decide(current: User, before: User = user) -> Sequence[Event]:
                if current.links != before.links:
                    raise _Moved
                return users.remove_links(current, platform)

            try:
                decided = await self._users.execute(
                    caller.user_id,
                    decide,
                    event_id=new_id(),
                    subject=caller.user_id,
                    metadata=caller.metadata(),
                    also=parts,
                )
            except (VersionConflict, _Moved):
                continue
            return [link.customer_id for link in linked], decided.event_id


class _Moved(Exception):
    """The links have changed: decide again."""
