"""`sangam restored`: what to do after the event store came back from a backup."""

from typing import Annotated
from uuid import UUID

import asyncpg
import typer

from events import pg
from events.cli import output
from events.cli.connection import (
    FOUND,
    SERVICES,
    EnvOption,
    JsonOption,
    OperatorOption,
    ReasonOption,
    Servers,
    StoreOption,
    acting,
    find_servers,
    opened,
    run,
)


def restored(
    new_epoch: Annotated[
        bool, typer.Option("--new-epoch", help="First, before any relay runs: this store is another life of the log.")
    ] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="Then, with the services stopped: take their consumers over to it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    reason: ReasonOption = None,
    operator: OperatorOption = None,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """After a restore: show who has seen what the restored log does not have, and take everybody over to it.

    A restored log ends earlier than what consumers have applied; new events take positions that meant others before. So
    it gets a new epoch, and every consumer stops until it is accepted here. A service whose consumers all stand at or
    before the restored end keeps its read models. One that is beyond starts from the log's beginning again; only what
    the log does not hold is kept, above all what was sent to whom, so that nothing is sent twice.

    Without an option nothing changes; exit code 1 if anybody stands in another epoch.

    Example: sangam restored --new-epoch && make up && sangam restored --accept
    """
    if new_epoch and accept:
        raise typer.BadParameter(
            "one after the other: --new-epoch before the relays run, --accept with services stopped"
        )
    servers = find_servers(store, env)

    async def work() -> int:
        if new_epoch:
            if not yes:
                typer.confirm("Every consumer stops until --accept. Go on?", abort=True, err=True)
            await _renew(servers, operator, reason)
        epoch, end = await _life(servers)
        services = {service: await _stands(servers, service) for service in SERVICES}
        plan = {service: _verdict(rows, epoch, end) for service, rows in services.items()}
        if accept:
            beyond = [service for service, verdict in plan.items() if verdict == "beyond"]
            if beyond and not yes:
                typer.confirm(
                    f"{', '.join(beyond)}: read models are emptied and filled again. Go on?", abort=True, err=True
                )
            for service, verdict in plan.items():
                if verdict in ("before", "beyond"):
                    async with acting(
                        servers, "restored accept", service, operator=operator, reason=reason,
                        arguments={"verdict": verdict, "epoch": epoch, "end": end},
                    ):  # fmt: skip
                        await _accept(servers, service, epoch, verdict)
            plan = {
                service: "accepted" if verdict in ("before", "beyond") else verdict for service, verdict in plan.items()
            }
        if as_json:
            output.print_json({"epoch": str(epoch), "restored_end": end, "services": plan})
        else:
            _print(epoch, end, plan)
        return FOUND if any(verdict in ("before", "beyond") for verdict in plan.values()) else 0

    run(servers, work)


async def _renew(servers: Servers, operator: str | None, reason: str | None) -> None:
    session = pg.Session(servers.url, application_name="sangam")
    async with opened(session) as writable:
        await writable.execute(
            "UPDATE store.store SET epoch = gen_random_uuid(), restored_end = (SELECT coalesce(max(position), 0)"
            " FROM store.log)"
        )
    async with acting(servers, "restored new-epoch", "store", operator=operator, reason=reason):
        pass


async def _life(servers: Servers) -> tuple[UUID, int | None]:
    async with opened(servers.store) as session:
        row = await session.fetchrow("SELECT epoch, restored_end FROM store.store")
    assert row is not None
    return UUID(int=row["epoch"].int), row["restored_end"]


async def _stands(servers: Servers, service: str) -> list[asyncpg.Record]:
    async with opened(servers.database(service)) as database:
        if not await database.fetchval("SELECT to_regclass('consumed') IS NOT NULL"):
            return []
        return await database.fetch("SELECT consumer, position, epoch FROM consumed")


def _verdict(rows: list[asyncpg.Record], epoch: UUID, end: int | None) -> str:
    others = [row for row in rows if row["epoch"] is not None and UUID(int=row["epoch"].int) != epoch]
    if not others:
        return "at home"
    # Where nobody said where the restored log ended, nothing is known to be common.
    return "before" if end is not None and all(row["position"] <= end for row in others) else "beyond"


async def _accept(servers: Servers, service: str, epoch: UUID, verdict: str) -> None:
    async with opened(servers.writable(service)) as database:
        connection = await database.connection()
        async with connection.transaction():
            if verdict == "beyond":
                tables = await connection.fetch("SELECT DISTINCT unnest(tables) AS name FROM consumed")
                for table in tables:
                    await connection.execute(f'DROP TABLE IF EXISTS public."{table["name"]}" CASCADE')
                await connection.execute("DELETE FROM parked")
                for row in await connection.fetch("DELETE FROM generation RETURNING schema"):
                    if row["schema"] not in ("public", ""):
                        await connection.execute(f'DROP SCHEMA IF EXISTS "{row["schema"]}" CASCADE')
                await connection.execute("UPDATE consumed SET position = 0, parkings = parkings + 1")
            await connection.execute("UPDATE consumed SET epoch = $1", epoch)


def _print(epoch: UUID, end: int | None, plan: dict[str, str]) -> None:
    out = output.stdout()
    out.print(f"epoch {epoch}" + (f", restored with its end at position {end:,}" if end is not None else ""))
    words = {
        "at home": "stands in this epoch",
        "before": "stands in another epoch, but not beyond the restored end: --accept keeps its read models",
        "beyond": "has applied what the restored log does not have: --accept makes it start again from the log",
        "accepted": "taken over; start it",
    }
    for service, verdict in plan.items():
        out.print(f"{service:<16} {words[verdict]}", style=None if verdict in ("at home", "accepted") else "yellow")
