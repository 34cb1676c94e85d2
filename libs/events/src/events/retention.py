"""How long a service keeps rows that nobody needs any more. The log itself is kept for good.

A handler names its rules in `retention`. The service applies them every hour with its own rights; `sangam retention`
asks it to do so now, or to tell what it would delete.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import asyncpg
import structlog

from events.outage import is_outage

log = structlog.get_logger(__name__)

EVERY_S = 3600.0
_AT_ONCE = 5_000


class Retention(NamedTuple):
    """Rows of `table` that have been finished for longer than `keep` may go.

    `since` is the column that tells when a row was finished, null while it is not. Where a row can look finished and
    is not, `states` names the values of a column that mean it is.
    """

    table: str
    since: str
    keep: timedelta
    states: tuple[str, Sequence[str]] | None = None


OWN = (Retention("operation", "finished_at", timedelta(days=90)),)
"""Of every service: what operators had it do. Who did what stays in the log (`sangam audit`)."""


def rules_of(handlers: Iterable[object]) -> list[Retention]:
    """The rules of a service's handlers, with those that every service has."""
    return [*OWN, *(rule for handler in handlers for rule in getattr(handler, "retention", ()))]


def days_of(text: str) -> dict[str, timedelta]:
    """Reads a setting like `delivery=14,notification=800`: days by table, in place of the rule's own.

    Raises:
        ValueError: it is not like that, or less than a day.
    """
    kept = {}
    for part in filter(None, (each.strip() for each in text.split(","))):
        table, equals, days = part.partition("=")
        if not equals or not days.strip().isdecimal() or int(days) < 1:
            raise ValueError(f"{part!r} should look like table=days, with at least 1 day")
        kept[table.strip()] = timedelta(days=int(days))
    return kept


async def apply(
    database: asyncpg.Pool | asyncpg.Connection,
    rules: Sequence[Retention],
    kept: Mapping[str, timedelta],
    *,
    dry_run: bool,
) -> list[dict[str, Any]]:
    """Deletes what is due, a few thousand rows in a transaction; or counts it. Gives what was done, by table."""
    done = []
    for rule in rules:
        keep = kept.get(rule.table, rule.keep)
        if not await database.fetchval("SELECT to_regclass($1) IS NOT NULL", f'"{rule.table}"'):
            continue
        condition = f'"{rule.since}" < now() - $1::interval'
        parameters: list[Any] = [keep]
        if rule.states is not None:
            condition += f' AND "{rule.states[0]}" = ANY ($2)'
            parameters.append(list(rule.states[1]))
        rows = 0
        if dry_run:
            rows = await database.fetchval(f'SELECT count(*) FROM "{rule.table}" WHERE {condition}', *parameters)
        else:
            some = f'SELECT ctid FROM "{rule.table}" WHERE {condition} LIMIT {_AT_ONCE}'
            deletion = f'DELETE FROM "{rule.table}" WHERE ctid = ANY (ARRAY({some})) AND {condition}'
            while deleted := int((await database.execute(deletion, *parameters)).split()[-1]):
                rows += deleted
        done.append({"table": rule.table, "days": keep.days, "rows": rows})
    return done


async def apply_forever(database: asyncpg.Pool, rules: Sequence[Retention], kept: Mapping[str, timedelta]) -> None:
    """Every hour. An outage is waited out until the next one."""
    while True:
        await asyncio.sleep(EVERY_S)
        try:
            done = await apply(database, rules, kept, dry_run=False)
        except Exception as error:
            if not is_outage(error):
                raise
            log.warning("retention.put_off", error=repr(error))
        else:
            if any(each["rows"] for each in done):
                log.info("retention.applied", deleted={each["table"]: each["rows"] for each in done})
