"""Reading the log as administrator: by range of positions, with filters."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import asyncpg
import msgspec

from events import pg
from events.cli.arguments import type_regex
from events.envelope import RecordedEvent
from events.store import recorded

COLUMNS = (
    "coalesce(l.position, 0) AS position, e.id, e.stream, e.version, e.event_id, e.type, e.schema_version, e.subject,"
    " e.data, e.metadata, e.recorded_at, l.chain_hash"
)

_DISORDER = timedelta(minutes=1)
"""Positions follow commits, `recorded_at` the insert before: they disagree by no more than a transaction lasts."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which events are meant. What is None does not matter."""

    type_pattern: str | None = None
    stream: str | None = None
    correlation_id: str | None = None
    customer: UUID | None = None
    not_before: datetime | None = None

    def conditions(self, parameters: list[Any]) -> str:
        """SQL for it, each part with `AND` before it; adds its values to `parameters`."""
        sql = ""

        def add(condition: str, value: object) -> None:
            nonlocal sql
            parameters.append(value)
            sql += " AND " + condition.replace("?", f"${len(parameters)}")

        if self.type_pattern is not None:
            add("e.type || '.' ~ ?", type_regex(self.type_pattern))
        if self.stream is not None:
            add("e.stream = ?", self.stream)
        if self.correlation_id is not None:
            add("position(?::bytea IN e.metadata) > 0", json_text(self.correlation_id))
        if self.customer is not None:
            add("(e.subject = ?::uuid OR split_part(e.stream, '-', 1) || '-' || ?::uuid = e.stream)", self.customer)
        if self.not_before is not None:
            add("e.recorded_at >= ?", self.not_before)
        return sql

    def matches(self, event: RecordedEvent) -> bool:
        """What SQL does not decide exactly: metadata are bytes to it."""
        return self.correlation_id is None or event.metadata.correlation_id == self.correlation_id


def json_text(text: str) -> bytes:
    """A string as it stands inside stored JSON."""
    return msgspec.json.encode(text)


def event_of(row: asyncpg.Record) -> RecordedEvent:
    """The row as an event. Metadata that nobody can read any more count as none: damage is to be looked at too."""
    try:
        return recorded(row)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return recorded(cast(asyncpg.Record, {**row, "metadata": b"{}"}))


async def head_position(store: pg.Session) -> int:
    """The log's last position."""
    return int(await store.fetchval("SELECT coalesce(max(position), 0) FROM store.log"))


async def read_range(
    store: pg.Session, wanted: Filter, after: int, up_to: int, *, limit: int, newest: bool = False
) -> list[asyncpg.Record]:
    """Events at positions above `after` and up to `up_to`, in order: the first `limit` of them, or the last."""
    parameters: list[Any] = [after, up_to, limit]
    rows = await store.fetch(
        f"SELECT {COLUMNS} FROM store.log l JOIN store.events e ON e.id = l.id"
        f" WHERE l.position > $1 AND l.position <= $2 {wanted.conditions(parameters)}"
        f" ORDER BY l.position {'DESC' if newest else 'ASC'} LIMIT $3",
        *parameters,
    )
    return rows[::-1] if newest else rows


async def read_one(store: pg.Session, which: int | UUID) -> asyncpg.Record | None:
    """The event at a position or of an id; one without a position has not been sequenced."""
    if isinstance(which, int):
        return await store.fetchrow(
            f"SELECT {COLUMNS} FROM store.log l JOIN store.events e ON e.id = l.id WHERE l.position = $1", which
        )
    return await store.fetchrow(
        f"SELECT {COLUMNS} FROM store.event_ids i JOIN store.events e ON e.stream = i.stream AND e.version = i.version"
        " LEFT JOIN store.log l ON l.id = e.id WHERE i.event_id = $1 ORDER BY (e.event_id = $1) DESC LIMIT 1",
        which,
    )


async def position_before(store: pg.Session, moment: datetime) -> int:
    """A position with nothing at or before it that was recorded at `moment` or later. By bisection: no index on time.

    It may be early: what follows still has to be filtered by its own time.
    """
    try:
        moment -= _DISORDER
    except OverflowError:
        return 0
    low, high = 0, await head_position(store)
    while low < high:
        middle = (low + high + 1) // 2
        row = await store.fetchrow(
            "SELECT l.position, e.recorded_at FROM store.log l JOIN store.events e ON e.id = l.id"
            " WHERE l.position <= $1 ORDER BY l.position DESC LIMIT 1",
            middle,
        )
        if row is None or row["recorded_at"] < moment:
            low = middle
        else:
            high = middle - 1
    return low


def which_event(text: str) -> int | UUID | None:
    """A position or an event id; None if it is neither."""
    if re.fullmatch(r"\d{1,18}", text, re.ASCII):
        return int(text)
    try:
        return UUID(text)
    except ValueError:
        return None
