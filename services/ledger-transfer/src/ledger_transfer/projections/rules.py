"""Read model: the customers' auto-replenish rules as they stand, when the timer has to wake them, and their history.

The row of a rule holds the rule book's own struct, folded by the same `rulebook.evolve` that decides with it: there is
no second opinion on what a rule is.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, NamedTuple, get_args
from uuid import UUID

import asyncpg
import msgspec
from events.contracts.identity import UserErased
from events.contracts.ledger_rules import (
    RuleChanged,
    RuleCreated,
    RuleDeleted,
    RuleFired,
    RulePaused,
    RuleRefused,
    RuleResumed,
    RuleSkipped,
)
from events.contracts.registry import Event, contract_of
from events.envelope import RecordedEvent

from ledger_transfer import rulebook
from ledger_transfer.replenish import next_wake
from ledger_transfer.rulebook import Rule, RuleBook

Outcome = Literal["fired", "refused", "skipped"]

LAST = 2**63 - 1
"""Before the first page of the history."""

_RULE_EVENTS = (
    RuleCreated | RuleChanged | RulePaused | RuleResumed | RuleDeleted | RuleFired | RuleRefused | RuleSkipped
)
_ERASED = contract_of(UserErased).type

_decoder = msgspec.json.Decoder(Rule)


class RuleRow(NamedTuple):
    """One rule with what its events tell besides."""

    rule: Rule
    position: int
    """Of its creation: its place in the list."""
    created_at: datetime
    changed_at: datetime
    """Of this version."""
    next_at: datetime | None
    last_fired_at: datetime | None
    executions: int


class DueRow(NamedTuple):
    """A rule whose time has come, as far as the read model knows."""

    user_id: UUID
    rule: Rule
    next_at: datetime


class HistoryRow(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation that ended in something. Amounts are minor units of `currency`."""

    position: int
    rule_id: UUID
    version: int
    occurrence: str
    outcome: Outcome
    reason: str | None
    transfer_id: UUID | None
    amount_minor: int | None
    currency: str | None
    available_minor: int | None
    missed: int
    retry_at: datetime | None
    at: datetime


class Rules:
    """Tables `rule` and `rule_history`."""

    name = "rules"
    version = 2  # a rule is kept with `sealed_texts` in its terms
    ddl = """
        CREATE TABLE IF NOT EXISTS rule (
            rule_id       uuid PRIMARY KEY,
            user_id       uuid NOT NULL,
            position      bigint NOT NULL,
            rule          text NOT NULL,
            created_at    timestamptz NOT NULL,
            changed_at    timestamptz NOT NULL,
            next_at       timestamptz,
            last_fired_at timestamptz,
            executions    bigint NOT NULL
        );
        CREATE INDEX IF NOT EXISTS rule_of_user ON rule (user_id, position);
        CREATE INDEX IF NOT EXISTS rule_due ON rule (next_at) WHERE next_at IS NOT NULL;
        CREATE TABLE IF NOT EXISTS rule_history (
            position        bigint PRIMARY KEY,
            user_id         uuid NOT NULL,
            rule_id         uuid NOT NULL,
            version         integer NOT NULL,
            occurrence      text NOT NULL,
            outcome         text NOT NULL,
            reason          text,
            transfer_id     uuid,
            amount_minor    bigint,
            currency        text,
            available_minor bigint,
            missed          integer NOT NULL,
            retry_at        timestamptz,
            at              timestamptz NOT NULL
        );
        CREATE INDEX IF NOT EXISTS rule_history_of_user ON rule_history (user_id, position);
        CREATE INDEX IF NOT EXISTS rule_history_of_rule ON rule_history (rule_id, position);
    """
    types = frozenset(contract_of(struct).type for struct in get_args(_RULE_EVENTS)) | {_ERASED}

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """In stretches between erasures, so that nothing of before survives one."""
        stretch: list[RecordedEvent] = []
        for event in events:
            if isinstance(event.payload, UserErased):
                await _apply(db, stretch)
                stretch = []
                for table in ("rule", "rule_history"):
                    await db.execute(f"DELETE FROM {table} WHERE user_id = $1", event.payload.user_id)
            else:
                stretch.append(event)
        await _apply(db, stretch)


async def list_rules(db: asyncpg.Pool, user_id: UUID, *, after_position: int, limit: int) -> list[RuleRow]:
    """The customer's rules in the order of their making, from behind a position."""
    rows = await db.fetch(
        f"SELECT {_COLUMNS} FROM rule WHERE user_id = $1 AND position > $2 ORDER BY position LIMIT $3",
        user_id,
        after_position,
        limit,
    )
    return [_row(row) for row in rows]


async def get_rule(db: asyncpg.Pool, user_id: UUID, rule_id: UUID) -> RuleRow | None:
    """The customer's rule of that id; None where there is none, or it was deleted."""
    row = await db.fetchrow(f"SELECT {_COLUMNS} FROM rule WHERE rule_id = $1 AND user_id = $2", rule_id, user_id)
    return None if row is None else _row(row)


async def list_history(
    db: asyncpg.Pool, user_id: UUID, rule_id: UUID | None, *, before: int, limit: int
) -> list[HistoryRow]:
    """What the customer's rules, or one of them, have done, the latest first."""
    rows = await db.fetch(
        """
        SELECT position, rule_id, version, occurrence, outcome, reason, transfer_id, amount_minor, currency,
               available_minor, missed, retry_at, at
        FROM rule_history
        WHERE user_id = $1 AND position < $2 AND rule_id = coalesce($3, rule_id)
        ORDER BY position DESC LIMIT $4
        """,
        user_id,
        before,
        rule_id,
        limit,
    )
    return [msgspec.convert(dict(row), HistoryRow) for row in rows]


async def has_history(db: asyncpg.Pool, user_id: UUID, rule_id: UUID) -> bool:
    """Whether a rule of the customer, deleted or not, has done anything."""
    found: bool = await db.fetchval(
        "SELECT EXISTS (SELECT FROM rule_history WHERE rule_id = $1 AND user_id = $2)", rule_id, user_id
    )
    return found


async def list_due(db: asyncpg.Pool, now: datetime, *, but: Sequence[UUID], limit: int) -> list[DueRow]:
    """The rules whose time has come, the longest due first, without those named."""
    rows = await db.fetch(
        """
        SELECT user_id, rule, next_at FROM rule
        WHERE next_at <= $1 AND NOT rule_id = ANY($2::uuid[])
        ORDER BY next_at, rule_id LIMIT $3
        """,
        now,
        list(but),
        limit,
    )
    return [DueRow(UUID(int=row["user_id"].int), _decoder.decode(row["rule"]), row["next_at"]) for row in rows]


_COLUMNS = "rule, position, created_at, changed_at, next_at, last_fired_at, executions"


def _row(row: asyncpg.Record) -> RuleRow:
    return RuleRow(
        _decoder.decode(row["rule"]),
        row["position"],
        row["created_at"],
        row["changed_at"],
        row["next_at"],
        row["last_fired_at"],
        row["executions"],
    )


async def _apply(db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
    if not events:
        return
    await _record_history(db, events)
    ids = {_rule_event(event).rule_id for event in events}
    stored = await db.fetch(f"SELECT rule_id, user_id, {_COLUMNS} FROM rule WHERE rule_id = ANY($1::uuid[])", list(ids))
    users = {UUID(int=row["rule_id"].int): UUID(int=row["user_id"].int) for row in stored}
    rows = {UUID(int=row["rule_id"].int): _row(row) for row in stored}
    for event in events:
        payload = _rule_event(event)
        if isinstance(payload, RuleCreated):
            users[payload.rule_id] = UUID(event.stream_id)
        _fold(rows, payload, event.position)
    gone = list(ids - rows.keys())
    if gone:
        await db.execute("DELETE FROM rule WHERE rule_id = ANY($1::uuid[])", gone)
    if rows:
        await db.execute(
            """
            INSERT INTO rule (rule_id, user_id, rule, position, created_at, changed_at, next_at, last_fired_at,
                              executions)
            SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::timestamptz[],
                                 $6::timestamptz[], $7::timestamptz[], $8::timestamptz[], $9::bigint[])
            ON CONFLICT (rule_id) DO UPDATE SET
                rule = excluded.rule, changed_at = excluded.changed_at, next_at = excluded.next_at,
                last_fired_at = excluded.last_fired_at, executions = excluded.executions
            """,
            *zip(
                *(
                    (
                        rule_id,
                        users[rule_id],
                        msgspec.json.encode(row.rule).decode(),
                        row.position,
                        row.created_at,
                        row.changed_at,
                        row.next_at,
                        row.last_fired_at,
                        row.executions,
                    )
                    for rule_id, row in rows.items()
                ),
                strict=True,
            ),
        )


def _fold(rows: dict[UUID, RuleRow], event: _RULE_EVENTS, position: int) -> None:
    """The row after one event. A rule that an erasure took stays gone, whatever it still does."""
    row = rows.get(event.rule_id)
    if row is None and not isinstance(event, RuleCreated):
        return
    book = rulebook.evolve(RuleBook(rules={event.rule_id: row.rule} if row else {}), event)
    rule = book.rules.get(event.rule_id)
    if rule is None:
        del rows[event.rule_id]
    elif isinstance(event, RuleCreated):
        rows[event.rule_id] = RuleRow(rule, position, event.created_at, event.created_at, next_wake(rule), None, 0)
    else:
        assert row is not None
        fired = isinstance(event, RuleFired)
        rows[event.rule_id] = row._replace(
            rule=rule,
            changed_at=event.changed_at if isinstance(event, RuleChanged) else row.changed_at,
            next_at=next_wake(rule),
            last_fired_at=event.fired_at if isinstance(event, RuleFired) else row.last_fired_at,
            executions=row.executions + fired,
        )


async def _record_history(db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
    rows = [row for event in events if (row := _history(event)) is not None]
    if rows:
        await db.execute(
            """
            INSERT INTO rule_history (position, user_id, rule_id, version, occurrence, outcome, reason, transfer_id,
                                      amount_minor, currency, available_minor, missed, retry_at, at)
            SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::uuid[], $4::integer[], $5::text[], $6::text[],
                                 $7::text[], $8::uuid[], $9::bigint[], $10::text[], $11::bigint[], $12::integer[],
                                 $13::timestamptz[], $14::timestamptz[])
            """,
            *zip(*rows, strict=True),
        )


def _history(event: RecordedEvent) -> tuple[object, ...] | None:
    payload = event.payload
    if not isinstance(payload, RuleFired | RuleRefused | RuleSkipped):
        return None
    whose = (event.position, UUID(event.stream_id), payload.rule_id, payload.version, payload.occurrence)
    match payload:
        case RuleFired():
            done: tuple[object, ...] = ("fired", None, payload.transfer_id, payload.amount_minor, payload.currency)
            return (*whose, *done, None, payload.missed, None, payload.fired_at)
        case RuleRefused():
            done = ("refused", payload.code, None, payload.amount_minor, payload.currency)
            return (*whose, *done, payload.available_minor, payload.missed, payload.retry_at, payload.refused_at)
        case RuleSkipped():
            done = ("skipped", payload.reason, None, None, None)
            return (*whose, *done, None, payload.missed, None, payload.skipped_at)


def _rule_event(event: RecordedEvent) -> _RULE_EVENTS:
    payload: Event = event.payload
    assert isinstance(payload, _RULE_EVENTS)
    return payload
