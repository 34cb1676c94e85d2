"""`sangam rebuild`: a read model made anew from the log, beside the live one."""

from typing import Annotated, Any

import msgspec
import typer

from events.cli import output
from events.cli.connection import (
    FOUND,
    EnvOption,
    JsonOption,
    OperatorOption,
    ReasonOption,
    StoreOption,
    acting,
    consumer_name,
    find_servers,
    opened,
    run,
    service_name,
)
from events.cli.watching import outcome
from events.operations import RebuildRequest, ask


def rebuild(
    service: Annotated[str, typer.Argument(metavar="SERVICE")],
    projection: Annotated[
        list[str], typer.Argument(metavar="PROJECTION…", help="Read models by name, or `all` of the service's.")
    ],
    diff: Annotated[
        bool,
        typer.Option("--diff", help="Build and show the rows that differ from the live ones; promote nothing."),
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Build, and keep it ready; promote nothing.")] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Put the ready generation in place.")] = False,
    discard: Annotated[bool, typer.Option("--discard", help="Drop the ready generation.")] = False,
    rollback: Annotated[bool, typer.Option("--rollback", help="Catch up and put back the generation before.")] = False,
    consumer: Annotated[
        str, typer.Option("--consumer", metavar="C", help="Whose read models they are.")
    ] = "projections",
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the end; the service works on alone.")
    ] = True,
    reason: ReasonOption = None,
    operator: OperatorOption = None,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build read models anew from the log beside the live ones, and swap them in at the same position.

    The service does it, with the code it runs, while it serves: readers see the old rows or the new ones, never half.
    Ctrl-C leaves it working; `sangam operations` lists, pauses and cancels. With --diff the exit code is 1 if rows
    differ. The tables that were live are kept for --rollback until the next promotion.

    Example: sangam rebuild wealth all --diff && sangam rebuild wealth all --promote
    """
    if sum((diff or keep, promote, discard, rollback)) > 1:
        raise typer.BadParameter("one at a time: --diff or --keep, --promote, --discard, --rollback")
    servers = find_servers(store, env)
    service = service_name(service)
    name = consumer_name(service, consumer)
    request = RebuildRequest(
        projections=None if projection == ["all"] else projection,
        action="promote" if promote else "discard" if discard else "rollback" if rollback else "build",
        promote=not (diff or keep),
        diff=diff,
    )

    async def work() -> int:
        async with opened(servers.writable(service)) as database:
            async with acting(
                servers,
                f"rebuild {request.action}",
                name,
                operator=operator,
                reason=reason,
                arguments={"projections": " ".join(projection), "diff": diff or None, "keep": keep or None},
            ) as act:
                operation_id = await ask(await database.connection(), name, request, act.operator)
                act.outcome, act.detail["operation"] = "handed_over", str(operation_id)
            result = await outcome(database, operation_id, wait=wait, as_json=as_json)
        if result is None:
            return 0
        differing = result.get("diff") or {}
        if as_json:
            output.print_json(result)
        else:
            _print(result, differing, request)
        return FOUND if differing else 0

    run(servers, work)


def _print(result: dict[str, Any], differing: dict[str, Any], request: RebuildRequest) -> None:
    out = output.stdout()
    if "discarded" in result:
        out.print(f"dropped {result['discarded']}", style="green")
        return
    rate = f", {result['applied'] / result['seconds']:,.0f} events/s" if result["seconds"] and result["applied"] else ""
    out.print(
        f"generation {result['generation']}: {result['applied']:,} events in {result['seconds']:.1f} s{rate},"
        f" up to position {result['position']:,}",
        soft_wrap=True,
    )
    if request.diff and not differing:
        out.print("every row is the same as the live one", style="green")
    for table, found in differing.items():
        out.print(
            f"{output.printable(table)}: {found.get('changed', 0):,} rows differ,"
            f" {found.get('only_live', 0):,} only live, {found.get('only_new', 0):,} only new",
            style="yellow",
        )
        for row in found.get("rows", ()):
            out.print(output.printable("  " + difference(row["live"], row["new"])), soft_wrap=True)
    if "promoted_at_position" in result:
        out.print(
            f"live since position {result['promoted_at_position']:,}; --rollback puts the one before back",
            style="green",
        )
    else:
        out.print("it is ready beside the live one: --promote or --discard it")


def difference(live: str | None, new: str | None) -> str:
    """Two rows, in the columns that differ."""
    if live is None:
        return f"+ {new}"
    if new is None:
        return f"- {live}"
    before, after = msgspec.json.decode(live), msgspec.json.decode(new)
    same = {column: value for column, value in after.items() if before.get(column) == value}

    def value(row: dict[str, Any], column: str) -> str:
        return msgspec.json.encode(row.get(column)).decode()

    changed = [
        f"{column}: {value(before, column)} → {value(after, column)}"
        for column in {**before, **after}
        if column not in same
    ]
    return f"~ {', '.join(changed)}   of {msgspec.json.encode(dict(list(same.items())[:4])).decode()}"
