"""Looks at customers whose money changed, and appends what is worth telling them and a changed grade of health.

A consumer of its own notes who changed, so that a rebuild of the read models never decides anything again. A task
looks at them once their events are in the read model, a little later: changes come in bursts. What is appended is
decided on the customer's stream, so two replicas looking at once append it once. Once a day everybody is looked
at, because dates pass without events.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

import asyncpg
import structlog
from chassis.service import Runtime
from events.contracts.wealth import InsightRaised
from events.decisions import Streams
from events.envelope import Metadata, RecordedEvent, derived_id
from events.outage import is_outage, until_it_works

from wealth.desk import Desk, Look
from wealth.ledger_lines import local_day
from wealth.noticed import WealthState, noticed
from wealth.projections.timeline import ERASED, TimelineProjection
from wealth.prose import Prose
from wealth.settings import WealthSettings

log = structlog.get_logger(__name__)

ACTOR = "service:wealth"
BATCH = 20
CLAIM_S = 60
"""How long a customer who is being looked at is left to the replica that began; after that it has died."""
IDLE_S = 1.0
PUT_OFF = timedelta(hours=1)
"""When a customer is looked at again whose figures could not be computed."""
_ASSESSMENTS = UUID("7e7c1f7e-2c53-5a77-9a4b-6f2a3f5f6c11")


class ReadModel(Protocol):
    """The consumer of the read models."""

    async def wait_for(self, position: int, timeout_s: float) -> bool: ...


class Changes:
    """The consumer: notes whose money changed. Effects and position are one transaction, so nobody is forgotten."""

    types = TimelineProjection.types
    ddl = """
        CREATE TABLE IF NOT EXISTS assessment_due (
            user_id uuid PRIMARY KEY,
            position bigint NOT NULL,
            due_at timestamptz NOT NULL,
            claimed_until timestamptz
        );
        CREATE TABLE IF NOT EXISTS assessment_link (
            platform_stream text PRIMARY KEY,
            user_id uuid NOT NULL
        );
        CREATE TABLE IF NOT EXISTS assessed_day (
            only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
            day date NOT NULL
        );
    """

    def __init__(self, desk: Desk, after_s: float) -> None:
        self._desk = desk
        self._after_s = after_s

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        due: dict[UUID, int] = {}
        streams: dict[str, int] = {}
        for event in events:
            if event.type == ERASED and event.subject is not None:
                self._desk.forget(event.subject)
                due.pop(event.subject, None)
                await db.execute("DELETE FROM assessment_due WHERE user_id = $1", event.subject)
                await db.execute("DELETE FROM assessment_link WHERE user_id = $1", event.subject)
            elif event.type == "identity.user.link_confirmed":
                user_id = UUID(event.stream_id)
                await db.execute(
                    "INSERT INTO assessment_link VALUES ($1, $2) "
                    "ON CONFLICT (platform_stream) DO UPDATE SET user_id = excluded.user_id",
                    event.payload.platform_stream,  # type: ignore[attr-defined]
                    user_id,
                )
                due[user_id] = event.position
            elif event.type == "identity.user.link_removed":
                await db.execute(
                    "DELETE FROM assessment_link WHERE platform_stream = $1 AND user_id = $2",
                    event.payload.platform_stream,  # type: ignore[attr-defined]
                    event.subject,
                )
            elif event.type.startswith("ledger."):
                due[UUID(event.stream_id)] = event.position
            else:
                streams[event.stream] = event.position
        if streams:
            rows = await db.fetch(
                "SELECT platform_stream, user_id FROM assessment_link WHERE platform_stream = ANY ($1)", list(streams)
            )
            for row in rows:
                user_id = UUID(int=row["user_id"].int)
                due[user_id] = max(due.get(user_id, 0), streams[row["platform_stream"]])
        if due:
            # Who waits already keeps their turn: a customer of many events is not put off for ever.
            await db.execute(
                "INSERT INTO assessment_due (user_id, position, due_at) "
                "SELECT u, p, now() + $3 FROM unnest($1::uuid[], $2::bigint[]) AS new (u, p) "
                "ON CONFLICT (user_id) DO UPDATE SET position = excluded.position",
                list(due),
                list(due.values()),
                timedelta(seconds=self._after_s),
            )


class Assessor:
    """Looks at the customers that are due, and appends what is worth telling."""

    def __init__(
        self,
        runtime: Runtime[WealthSettings],
        desk: Desk,
        streams: "Streams[WealthState]",
        prose: Prose | None,
    ) -> None:
        self._database = runtime.database
        self._read_model: ReadModel = runtime.consumer("projections")
        self._duty = runtime.settings.assess_duty_percent / 100
        self._desk = desk
        self._streams = streams
        self._prose = prose

    async def run(self) -> None:
        """Looks at whoever is due, for ever."""
        while True:
            if not await until_it_works("assessments", self.turn):
                await asyncio.sleep(IDLE_S)

    async def turn(self) -> int:
        """Looks at some of those that are due; gives how many."""
        await self._begin_day()
        rows = await self._database.fetch(
            "UPDATE assessment_due SET claimed_until = now() + $2 WHERE user_id IN ("
            "SELECT user_id FROM assessment_due WHERE due_at <= now() "
            "AND (claimed_until IS NULL OR claimed_until < now()) "
            "ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING user_id, position",
            BATCH,
            timedelta(seconds=CLAIM_S),
        )
        for row in rows:
            started_s = time.monotonic()
            user_id, position = UUID(int=row["user_id"].int), row["position"]
            if not await self._read_model.wait_for(position, CLAIM_S / 2):
                continue  # the read model is far behind; the claim runs out and it is tried again
            try:
                await self.assess(user_id)
            except Exception as error:
                if is_outage(error):
                    raise
                # One customer's odd figures must not keep everybody else's insights back.
                log.exception("assessment.failed")
                await self._put_off(user_id)
                continue
            # Gone only if nothing changed meanwhile; else it is due again.
            done = await self._database.fetchval(
                "DELETE FROM assessment_due WHERE user_id = $1 AND position = $2 RETURNING 1", user_id, position
            )
            if done is None:
                await self._database.execute(
                    "UPDATE assessment_due SET claimed_until = NULL, due_at = now() WHERE user_id = $1", user_id
                )
            # Requests come first: with a duty of a fifth, four times as long is left to them.
            await asyncio.sleep((time.monotonic() - started_s) * (1 / self._duty - 1))
        return len(rows)

    async def _put_off(self, user_id: UUID) -> None:
        await self._database.execute(
            "UPDATE assessment_due SET claimed_until = NULL, due_at = now() + $2 WHERE user_id = $1",
            user_id,
            PUT_OFF,
        )

    async def assess(self, user_id: UUID) -> None:
        """Appends what is new about a customer. Looking at the same figures again appends nothing."""
        look = await self._desk.look(user_id)
        computed, now = look.computed, self._desk.clock()
        if not computed.picture.linked:
            return  # nothing is known of them, or nothing any more
        state, version = await self._streams.load(user_id)
        prose = await self._words(state, user_id, look, now) if self._prose is not None else {}
        await self._streams.execute(
            user_id,
            lambda current: noticed(current, user_id, computed.found, computed.health, now, prose),
            event_id=derived_id(_ASSESSMENTS, user_id, version, look.position, now.isoformat()),
            subject=user_id,
            metadata=Metadata(actor=ACTOR),
        )

    async def _words(self, state: WealthState, user_id: UUID, look: Look, now: datetime) -> dict[UUID, tuple[str, str]]:
        """Other words for the insights about to be raised."""
        assert self._prose is not None
        new = {
            event.insight_id
            for event in noticed(state, user_id, look.computed.found, look.computed.health, now)
            if isinstance(event, InsightRaised)
        }
        words = {}
        for shown in look.computed.shown:
            if shown.insight_id in new and (text := await self._prose.reword(shown.insight)):
                words[shown.insight_id] = text
        return words

    async def _begin_day(self) -> None:
        """With the first turn of a day everybody is due: dates pass without events."""
        day = local_day(self._desk.clock())
        async with self._database.acquire() as db, db.transaction():
            begun = await db.fetchval(
                "INSERT INTO assessed_day (day) VALUES ($1) "
                "ON CONFLICT (only_row) DO UPDATE SET day = excluded.day WHERE assessed_day.day < excluded.day "
                "RETURNING day",
                day,
            )
            if begun is not None:
                await db.execute(
                    "INSERT INTO assessment_due (user_id, position, due_at) "
                    "SELECT user_id, position, now() FROM changed ON CONFLICT DO NOTHING"
                )
