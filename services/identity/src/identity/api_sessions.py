"""`/api/auth`: logging out, here and everywhere, and the list of sessions."""

from datetime import datetime
from uuid import UUID

import msgspec
from chassis.problems import Problem
from chassis.tokens import Caller
from events.contracts.identity import Platform
from litestar import Response, delete, get, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from identity.bodies import command
from identity.root_sessions import ENDED_ELSEWHERE, LOGOUT, LOGOUT_ALL, Ended, Listed, RootSessions


class ReceiptItem(msgspec.Struct, frozen=True, kw_only=True):
    """One verifier's answer to a revocation."""

    verifier: str
    position: int
    """The log position up to which it knows revocations."""
    applied_ms: float | None
    """How long it took until its answer was here; null if none came in time: it is down, and will know when it
    starts."""


class LogoutAnswer(msgspec.Struct, frozen=True, kw_only=True):
    revoked: int
    """How many sessions this request ended."""
    receipt: list[ReceiptItem]


class SessionItem(msgspec.Struct, frozen=True, kw_only=True):
    session_id: UUID
    current: bool
    """Whether it is the one that asks."""
    platform: Platform
    """Where the login was."""
    platforms: dict[Platform, datetime]
    """The platforms that it is used on, with the last activity."""
    acr: int
    opened_at: datetime
    expires_at: datetime
    user_agent: str | None
    address: str | None
    apps: list[str]
    """The apps that were signed in through it."""


class SessionPage(msgspec.Struct, frozen=True, kw_only=True):
    items: list[SessionItem]
    next_cursor: None = None
    """All are on one page: there are at most 50."""


def routes(roots: RootSessions) -> list[HTTPRouteHandler]:
    """Logout and sessions."""

    @post("/api/auth/logout", status_code=200, summary="End this session on both platforms", tags=["sessions"])
    async def logout(caller: NamedDependency[Caller]) -> Response[LogoutAnswer]:
        """Every token of the session is refused by every service from now on; the receipt says by which and when."""
        return _ended(await roots.end(caller.user_id, lambda known, _: [caller.session_id], LOGOUT, caller.metadata()))

    @post("/api/auth/logout-all", status_code=200, summary="End every session, everywhere", tags=["sessions"])
    async def logout_all(caller: NamedDependency[Caller]) -> Response[LogoutAnswer]:
        """This session and all others, on both platforms and all devices."""
        return _ended(await roots.end(caller.user_id, lambda known, _: list(known.open), LOGOUT_ALL, caller.metadata()))

    @get("/api/auth/sessions", summary="Sessions and devices", tags=["sessions"])
    async def list_sessions(caller: NamedDependency[Caller]) -> SessionPage:
        """The caller's live sessions, the latest first."""
        return SessionPage(items=[_item(each, caller) for each in await roots.listed(caller.user_id)])

    @delete(
        "/api/auth/sessions/{session_id:uuid}", status_code=200, summary="End one of the sessions", tags=["sessions"]
    )
    async def end_session(session_id: FromPath[UUID], caller: NamedDependency[Caller]) -> Response[LogoutAnswer]:
        """Refusal: 404 `session_not_found`, also for another's session and for one that has ended."""
        ended = await roots.end(caller.user_id, lambda known, _: [session_id], ENDED_ELSEWHERE, caller.metadata())
        if not ended.session_ids:
            raise Problem(404, "session_not_found", "There is no such session")
        return _ended(ended)

    return [logout, logout_all, list_sessions, end_session]


def _ended(ended: Ended) -> Response[LogoutAnswer]:
    receipt = [
        ReceiptItem(verifier=line.verifier, position=line.position, applied_ms=line.applied_ms)
        for line in ended.receipt
    ]
    return command(LogoutAnswer(revoked=len(ended.session_ids), receipt=receipt), ended.event_id)


def _item(listed: Listed, caller: Caller) -> SessionItem:
    session, device = listed.session, listed.device
    return SessionItem(
        session_id=listed.session_id,
        current=listed.session_id == caller.session_id,
        platform=session.platform,
        platforms=session.active,
        acr=session.acr,
        opened_at=listed.sign_in.opened_at,
        expires_at=listed.sign_in.expires_at,
        user_agent=device.user_agent if device is not None else None,
        address=device.address if device is not None else None,
        apps=sorted({grant.client_id for grant in session.grants.values() if grant.redeemed}),
    )
