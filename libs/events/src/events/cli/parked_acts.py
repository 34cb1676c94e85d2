"""`sangam parked retry|skip|skipped`: what an operator does about parked events. Order per stream is kept."""

import asyncio
import time
from typing import Annotated, Any

import asyncpg
import typer

from events import pg
from events.audit import operator_name
from events.cli import output
from events.cli.connection import (
    FOUND,
    SERVICES,
    EnvOption,
    JsonOption,
    OperatorOption,
    StoreOption,
    acting,
    consumer_name,
    find_servers,
    opened,
    run,
    service_name,
)

_POLL_S = 0.2

_HEADS = (
    "SELECT DISTINCT ON (stream) stream, position, reason, error, attempts, retry_at FROM parked"
    " WHERE consumer = $1 ORDER BY stream, position"
)

ServiceArgument = Annotated[str, typer.Argument(metavar="SERVICE")]
ConsumerArgument = Annotated[str, typer.Argument(metavar="CONSUMER", help="`projections`, or in full.")]


def retry(
    service: ServiceArgument,
    consumer: ConsumerArgument,
    position: Annotated[
        int | None, typer.Argument(metavar="[POSITION]", min=1, help="The first parked event of a stream.")
    ] = None,
    stream: Annotated[str | None, typer.Option("--stream", help="The parked events of this stream.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that this consumer has parked.")] = False,
    wait_s: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long to wait for the outcome.")
    ] = 15.0,
    operator: OperatorOption = None,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the consumer to apply parked events now: the first of a stream, then those behind it, in their order.

    The running service does it, with its own code; correct and deploy that first. Whatever fails again stays parked
    with the new error. Exit code 1 if anything asked for is still parked at the end.

    Example: sangam parked retry ledger-transfer reactions 1200
    """
    servers = find_servers(store, env)
    service = service_name(service)
    name = consumer_name(service, consumer)
    if sum((position is not None, stream is not None, everything)) != 1:
        raise typer.BadParameter("say which: a POSITION, --stream NAME, or --all")

    async def work() -> int:
        async with opened(servers.writable(service)) as database:
            heads = {row["stream"]: row for row in await _heads(database, name)}
            if everything:
                wanted = list(heads)
            elif stream is not None:
                wanted = [stream] if stream in heads else []
            else:
                wanted = [each for each, head in heads.items() if head["position"] == position]
            if not wanted:
                return await _not_a_head(database, name, position)
            async with acting(
                servers, "parked retry", name, operator=operator, arguments={"position": position, "stream": stream}
            ) as act:
                await database.execute(
                    "UPDATE parked SET retry_at = now() WHERE consumer = $1 AND position = ANY ($2)",
                    name,
                    [heads[each]["position"] for each in wanted],
                )
                left = await _outcome(database, name, wanted, wait_s)
                act.detail["streams"] = str(len(wanted))
                act.detail["still_parked"] = str(len(left))
        for row in left:
            _tell(row, as_json)
        if not as_json and not left:
            output.stdout().print(f"applied: nothing is parked any more on {len(wanted)} stream(s)", style="green")
        return FOUND if left else 0

    run(servers, work)


def skip(
    service: ServiceArgument,
    consumer: ConsumerArgument,
    position: Annotated[int, typer.Argument(metavar="POSITION", min=1, help="The first parked event of a stream.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why it may be left out. It is kept.")],
    wait_s: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="How long to wait for those behind it.")
    ] = 15.0,
    operator: OperatorOption = None,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Leave out one parked event for this consumer, for ever; those behind it on its stream are applied.

    The event stays in the log. A rebuild and a replay leave it out as well. Only the first parked event of a stream
    can be skipped: order is kept.

    Example: sangam parked skip wealth projections 1200 --reason 'amount outside of int8, ticket 4711'
    """
    servers = find_servers(store, env)
    service = service_name(service)
    name = consumer_name(service, consumer)
    if not reason.strip():
        raise typer.BadParameter("--reason: say why")

    async def work() -> int:
        async with opened(servers.writable(service)) as database:
            heads = [row for row in await _heads(database, name) if row["position"] == position]
            if not heads:
                return await _not_a_head(database, name, position)
            async with acting(
                servers, "parked skip", name, operator=operator, reason=reason, arguments={"position": position}
            ) as act:
                connection = await database.connection()
                async with connection.transaction():
                    if not await _leave_out(connection, name, position, reason, operator or operator_name()):
                        act.outcome = "failed"
                        act.detail["error"] = "not parked any more"
                        output.complain(f"{name} has not parked position {position} any more")
                        return FOUND
            left = await _outcome(database, name, [heads[0]["stream"]], wait_s)
        for row in left:
            _tell(row, as_json)
        if not as_json:
            output.stdout().print(f"skipped position {position}: {output.printable(reason)}", style="green")
        return FOUND if left else 0

    run(servers, work)


def list_skipped(
    service: Annotated[str | None, typer.Option("--service", metavar="S", help="Only this service's.")] = None,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what operators have skipped, by whom and why.

    Example: sangam parked skipped --service wealth
    """
    servers = find_servers(store, env)

    async def work() -> int:
        rows: list[dict[str, Any]] = []
        for each in SERVICES if service is None else (service_name(service),):
            async with opened(servers.database(each)) as database:
                if await database.fetchval("SELECT to_regclass('skipped') IS NOT NULL"):
                    rows += map(dict, await database.fetch("SELECT * FROM skipped ORDER BY consumer, position"))
        if as_json:
            for row in rows:
                output.print_json({**row, "event_id": str(row["event_id"])})
            return 0
        shown = output.table("consumer", "position", "skipped at", "type", "by", "reason", right=("position",))
        for row in rows:
            shown.add_row(
                output.printable(row["consumer"]),
                str(row["position"]),
                output.clock(row["skipped_at"]),
                output.type_text(row["type"]),
                output.printable(row["operator"]),
                output.printable(row["reason"]),
            )
        output.stdout().print(shown if rows else "nothing was ever skipped")
        return 0

    run(servers, work)


async def _heads(database: pg.Session, consumer: str) -> list[asyncpg.Record]:
    """The first parked event of each stream."""
    if not await database.fetchval("SELECT to_regclass('skipped') IS NOT NULL"):
        return []
    return await database.fetch(_HEADS, consumer)


async def _not_a_head(database: pg.Session, consumer: str, position: int | None) -> int:
    first = None
    if position is not None and await database.fetchval("SELECT to_regclass('parked') IS NOT NULL"):
        first = await database.fetchval(
            "SELECT min(position) FROM parked WHERE consumer = $1"
            " AND stream = (SELECT stream FROM parked WHERE consumer = $1 AND position = $2)",
            consumer,
            position,
        )
    if first is not None:
        output.complain(f"position {position} waits behind position {first} of its stream: that one comes first")
    else:
        output.complain(f"{consumer} has parked nothing of the kind")
    return FOUND


async def _leave_out(connection: asyncpg.Connection, consumer: str, position: int, reason: str, operator: str) -> bool:
    """One transaction under the consumer's lock: no retry and no event of the stream comes between."""
    await connection.execute("SELECT FROM consumed WHERE consumer = $1 FOR UPDATE", consumer)
    row = await connection.fetchrow(
        "DELETE FROM parked WHERE consumer = $1 AND position = $2 RETURNING stream, event_id, type", consumer, position
    )
    if row is None:
        return False
    await connection.execute(
        "INSERT INTO skipped (consumer, position, stream, event_id, type, reason, operator)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7)",
        consumer,
        position,
        row["stream"],
        row["event_id"],
        row["type"],
        reason,
        operator,
    )
    await connection.execute(
        "UPDATE parked SET retry_at = now() WHERE consumer = $1 AND position ="
        " (SELECT min(position) FROM parked WHERE consumer = $1 AND stream = $2)",
        consumer,
        row["stream"],
    )
    await connection.execute("UPDATE consumed SET parkings = parkings + 1 WHERE consumer = $1", consumer)
    return True


async def _outcome(database: pg.Session, consumer: str, streams: list[str], wait_s: float) -> list[asyncpg.Record]:
    """What is still parked of these streams: their first events, with the error or still waiting for the consumer."""
    deadline = time.monotonic() + wait_s
    while True:
        left = [row for row in await _heads(database, consumer) if row["stream"] in streams]
        if all(row["retry_at"] is None for row in left) or time.monotonic() > deadline:
            return left
        await asyncio.sleep(_POLL_S)


def _tell(row: asyncpg.Record, as_json: bool) -> None:
    waiting = row["retry_at"] is not None
    if as_json:
        output.print_json({**row, "outcome": "waiting" if waiting else "parked_again"})
    elif waiting:
        output.complain(
            f"position {row['position']}: the consumer has not tried it yet. Does the service run? (sangam lag)"
        )
    else:
        output.complain(f"position {row['position']}: parked again after {row['attempts']} attempts: {row['error']}")
