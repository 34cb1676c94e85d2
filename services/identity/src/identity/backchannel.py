"""OpenID Connect Back-Channel Logout 1.0: every app that had a grant under a session is told that it has ended.

A consumer of the log notes what must be told, with its position; a sender tells it. A note is keyed by the event and
the app, so applying the log again tells nobody twice.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import aiohttp
import asyncpg
import structlog
from events.contracts.identity import SessionRevoked
from events.contracts.registry import contract_of
from events.envelope import RecordedEvent, derived_id
from events.outage import is_outage
from events.retention import Retention

from identity.clients import App
from identity.tokens import AccessTokens

log = structlog.get_logger(__name__)

EVENT = "http://schemas.openid.net/event/backchannel-logout"
TOKEN_TYPE = "logout+jwt"  # noqa: S105 - a type, not a secret
TOKEN_LIFETIME_S = 120
ATTEMPTS_MAX = 12
TIMEOUT_S = 5.0
_POLL_S = 1.0
_AT_ONCE = 20


class LogoutNotes:
    """Consumer: who must be told."""

    types = frozenset({contract_of(SessionRevoked).type})
    retention = (Retention("logout_note", "next_at", timedelta(days=30)),)
    ddl = """
        CREATE TABLE IF NOT EXISTS logout_note (
            event_id uuid NOT NULL,
            client_id text NOT NULL,
            user_id uuid NOT NULL,
            session_id uuid NOT NULL,
            attempts int NOT NULL DEFAULT 0,
            next_at timestamptz NOT NULL DEFAULT now(),
            told_at timestamptz,
            PRIMARY KEY (event_id, client_id)
        );
        CREATE INDEX IF NOT EXISTS logout_note_due ON logout_note (next_at) WHERE told_at IS NULL;
    """

    def __init__(self) -> None:
        self.noted = asyncio.Event()

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        rows = [
            (event.event_id, client_id, event.payload.user_id, event.payload.session_id)
            for event in events
            if isinstance(event.payload, SessionRevoked)
            for client_id in event.payload.clients
        ]
        if rows:
            await db.executemany(
                "INSERT INTO logout_note (event_id, client_id, user_id, session_id) VALUES ($1, $2, $3, $4)"
                " ON CONFLICT DO NOTHING",
                rows,
            )
            self.noted.set()


class LogoutSender:
    """Tells the apps, again and again until they have heard or `ATTEMPTS_MAX` is reached."""

    def __init__(
        self,
        database: "asyncpg.Pool[asyncpg.Record]",
        http: aiohttp.ClientSession,
        apps: Mapping[str, App],
        access_tokens: AccessTokens,
        noted: asyncio.Event,
    ) -> None:
        self._database = database
        self._http = http
        self._apps = apps
        self._access_tokens = access_tokens
        self._noted = noted

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._noted.clear()
            if not await self._table_is_there():
                await asyncio.sleep(_POLL_S)  # the consumer makes it, at the start of the service
                continue
            try:
                while await self.tell_due():
                    pass
            except Exception as error:
                if not is_outage(error):
                    raise
                log.warning("logout_not_told", error=repr(error))
            try:
                async with asyncio.timeout(_POLL_S):
                    await self._noted.wait()
                # Noted inside the consumer's transaction: give it a moment to commit.
                await asyncio.sleep(0.01)
            except TimeoutError:
                pass

    async def _table_is_there(self) -> bool:
        try:
            there: bool = await self._database.fetchval("SELECT to_regclass('logout_note') IS NOT NULL")
        except Exception as error:
            if not is_outage(error):
                raise
            return False
        return there

    async def tell_due(self) -> int:
        """Tells what is due. How many that were."""
        async with self._database.acquire() as db, db.transaction():
            # Locked while it is told: of two replicas, one tells it. A crash tells it again, with the same `jti`.
            due = await db.fetch(
                "SELECT event_id, client_id, user_id, session_id FROM logout_note WHERE told_at IS NULL"
                " AND next_at <= now() AND attempts < $1 ORDER BY next_at LIMIT $2 FOR UPDATE SKIP LOCKED",
                ATTEMPTS_MAX,
                _AT_ONCE,
            )
            heard = await asyncio.gather(*(self._tell(row) for row in due))
            for row, ok in zip(due, heard, strict=True):
                await db.execute(
                    "UPDATE logout_note SET attempts = attempts + 1, told_at = CASE WHEN $3 THEN now() END,"
                    " next_at = now() + least(power(2, attempts), 600) * interval '1 second'"
                    " WHERE event_id = $1 AND client_id = $2",
                    row["event_id"],
                    row["client_id"],
                    ok,
                )
        return len(due)

    async def _tell(self, row: asyncpg.Record) -> bool:
        app = self._apps.get(row["client_id"])
        if app is None or app.backchannel_logout_uri is None:
            return True  # nobody wants to hear of it
        now = int(datetime.now(UTC).timestamp())
        token = self._access_tokens.signed(
            TOKEN_TYPE,
            {
                "iss": self._access_tokens.issuer,
                "aud": app.client_id,
                "iat": now,
                "exp": now + TOKEN_LIFETIME_S,
                "jti": str(derived_id(row["event_id"], app.client_id)),
                "sub": str(row["user_id"]),
                "sid": str(row["session_id"]),
                "events": {EVENT: {}},
            },
        )
        try:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            async with self._http.post(
                app.backchannel_logout_uri, data={"logout_token": token}, timeout=timeout, allow_redirects=False
            ) as answer:
                if answer.status in (200, 204):
                    return True
                log.warning("logout_refused", client=app.client_id, status=answer.status)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("logout_not_heard", client=app.client_id, error=type(error).__name__)
        return False
