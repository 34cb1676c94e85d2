"""`sangam events tail`: the end of the log, filtered, and what comes after it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import typer

from events import pg
from events.cli import arguments, output
from events.cli.connection import EnvOption, JsonOption, StoreOption, find_servers, opened, run
from events.cli.reading import Filter, event_of, head_position, position_before, read_range
from events.envelope import RecordedEvent

_DEFAULT_LIMIT = 20
_PAGE = 5_000
_FIRST_PAGE = 500
_POLL_S = 0.2
_RETRY_S = 1.0


def tail(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with every new event until Ctrl-C.")] = False,
    event_type: Annotated[
        str | None,
        typer.Option("--type", metavar="PATTERN", help="Event type as in AMQP: * is one word, # any number of them."),
    ] = None,
    stream: Annotated[str | None, typer.Option("--stream", help="One stream, by its full name.")] = None,
    correlation: Annotated[
        str | None, typer.Option("--correlation", metavar="ID", help="All that one request (X-Request-Id) led to.")
    ] = None,
    customer: Annotated[
        UUID | None,
        typer.Option("--customer", metavar="UUID", help="Events about this user, or on a stream of theirs."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME|POSITION", help="From there on: 1200, 15m, 2026-02-12T09:00:00Z."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=0, help="The newest N of the past. Default: 20; with --since, all."),
    ] = None,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the newest events, one a line, payload as it is stored; with --follow go on live.

    With --json each line is one CloudEvent.

    Example: sangam events tail --follow --type 'ledger.transfer.*' --since 15m
    """
    servers = find_servers(store, env)
    start = arguments.since(since, datetime.now(UTC)) if since is not None else None
    wanted = Filter(
        type_pattern=event_type,
        stream=stream,
        correlation_id=correlation,
        customer=customer,
        not_before=start if isinstance(start, datetime) else None,
    )
    if limit is None and start is None:
        limit = _DEFAULT_LIMIT
    out = output.stdout()

    def emit(event: RecordedEvent) -> None:
        if as_json:
            output.print_json(output.cloud_event(event))
        elif out.is_terminal:
            out.print(output.event_line(event), no_wrap=True, overflow="ellipsis", crop=True)
        else:
            out.print(output.event_line(event), soft_wrap=True)

    async def work() -> int:
        async with opened(servers.store) as session:
            head = await head_position(session)
            if isinstance(start, datetime):
                after = await position_before(session, start)
            else:
                after = max((start or 0) - 1, 0)
            if limit is None:
                async for event in _forward(session, wanted, after, head):
                    emit(event)
            else:
                for event in await _newest(session, wanted, after, head, limit):
                    emit(event)
            if follow:
                # A start beyond the head is a wish about the future.
                await _follow(session, wanted, max(head, after), emit)
        return 0

    run(servers, work)


async def _forward(session: pg.Session, wanted: Filter, after: int, up_to: int) -> AsyncIterator[RecordedEvent]:
    """All matching events of the range, in order, page by page."""
    while after < up_to:
        # One stream is found by its index, however wide the range is.
        last = up_to if wanted.stream is not None else min(after + _PAGE, up_to)
        rows = await read_range(session, wanted, after, last, limit=_PAGE)
        for row in rows:
            if wanted.matches(event := event_of(row)):
                yield event
        after = rows[-1]["position"] if len(rows) == _PAGE else last


async def _newest(session: pg.Session, wanted: Filter, after: int, up_to: int, limit: int) -> list[RecordedEvent]:
    """The last `limit` matching events of the range, searched backwards in growing pages."""
    found: list[RecordedEvent] = []
    width = max(_FIRST_PAGE, limit)
    while up_to > after and len(found) < limit:
        first = after if wanted.stream is not None else max(after, up_to - width)
        rows = await read_range(session, wanted, first, up_to, limit=_PAGE, newest=True)
        matching = [event for event in map(event_of, rows) if wanted.matches(event)]
        found = matching + found
        up_to = rows[0]["position"] - 1 if len(rows) == _PAGE else first
        width = min(width * 2, 20 * _PAGE)
    return found[-limit:] if limit else []


async def _follow(session: pg.Session, wanted: Filter, after: int, emit: Callable[[RecordedEvent], None]) -> None:
    """Prints what is new, for ever; waits out an outage of the database."""
    away = False
    while True:
        try:
            head = await head_position(session)
            async for event in _forward(session, wanted, after, head):
                emit(event)
                after = event.position
            after = max(after, head)
        except BrokenPipeError:
            raise
        except Exception as error:
            if not pg.is_outage(error):
                raise
            if not away:
                output.complain(f"the store is away, waiting for it ({error or type(error).__name__})")
            away = True
            await asyncio.sleep(_RETRY_S)
            continue
        if away:
            output.complain("the store is back")
            away = False
        await asyncio.sleep(_POLL_S)
