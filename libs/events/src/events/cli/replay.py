"""`sangam replay`: chosen events of the past to one consumer again."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from events.cli import arguments, output
from events.cli.connection import (
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
from events.cli.reading import position_before
from events.cli.rebuild import difference
from events.cli.watching import outcome
from events.operations import ReplayRequest, ask


def replay(
    service: Annotated[str, typer.Argument(metavar="SERVICE")],
    consumer: Annotated[str, typer.Argument(metavar="CONSUMER", help="`projections`, `reactions`, or in full.")],
    projection: Annotated[
        list[str] | None, typer.Option("--projection", metavar="NAME", help="Only these of its read models.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME|POSITION", help="From there on: 1200, 7d, 2026-02-10.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME|POSITION", help="Up to there, a position included.")
    ] = None,
    event_type: Annotated[
        str | None, typer.Option("--type", metavar="PATTERN", help="Types as in AMQP: `ledger.transfer.*`.")
    ] = None,
    stream: Annotated[str | None, typer.Option("--stream", help="One stream, by its full name.")] = None,
    correlation: Annotated[
        str | None, typer.Option("--correlation", metavar="ID", help="What one request led to.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", metavar="N", min=0.1, help="At most N events a second.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count, estimate, and show what rows and outside effects would change.")
    ] = False,
    sample: Annotated[
        int, typer.Option("--sample", metavar="N", min=0, max=20_000, help="Events that a dry run tries out.")
    ] = 1_000,
    with_effects: Annotated[
        bool, typer.Option("--with-effects", help="Also let webhooks, mails and the like go out. Asks you to confirm.")
    ] = False,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also into read models where twice is not declared the same as once.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Confirms --with-effects and --anyway without asking.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the end; the service works on alone.")
    ] = True,
    reason: ReasonOption = None,
    operator: OperatorOption = None,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give chosen events of the past to one consumer again, beside the live ones; nobody else sees them.

    Start with --dry-run: it applies the first events, shows which rows change and how, and takes everything back.
    Outside effects are suppressed unless you ask for them. A replay survives a crash: it goes on where it was.
    `sangam operations` pauses, resumes and cancels it.

    Example: sangam replay search projections --since 2026-02-10 --until 2026-02-11 --rate 500 --dry-run
    """
    servers = find_servers(store, env)
    service = service_name(service)
    name = consumer_name(service, consumer)
    now = datetime.now(UTC)
    start = arguments.since(since, now) if since is not None else 0
    end = arguments.since(until, now) if until is not None else None
    if not dry_run and (with_effects or anyway) and not yes:
        what = "outside effects WILL happen" if with_effects else "rows may count events twice"
        typer.confirm(f"{name}: {what}. Go on?", abort=True, err=True)

    async def work() -> int:
        async with opened(servers.store) as session:
            after = await position_before(session, start) if isinstance(start, datetime) else max(start - 1, 0)
        request = ReplayRequest(
            projections=projection or None,
            after=after,
            up_to=end if isinstance(end, int) else None,
            since=start.isoformat() if isinstance(start, datetime) else None,
            until=end.isoformat() if isinstance(end, datetime) else None,
            type_pattern=event_type,
            stream=stream,
            correlation_id=correlation,
            rate=rate,
            dry_run=dry_run,
            sample=sample,
            with_effects=with_effects,
            anyway=anyway,
        )
        said = {"since": since, "until": until, "type": event_type, "stream": stream, "correlation": correlation,
                "rate": rate, "with_effects": with_effects or None, "anyway": anyway or None}  # fmt: skip
        async with opened(servers.writable(service)) as database:
            act_name = "replay dry-run" if dry_run else "replay"
            async with acting(servers, act_name, name, operator=operator, reason=reason, arguments=said) as act:
                operation_id = await ask(await database.connection(), name, request, act.operator)
                act.outcome, act.detail["operation"] = "handed_over", str(operation_id)
            result = await outcome(database, operation_id, wait=wait, as_json=as_json)
        if result is None:
            return 0
        if as_json:
            output.print_json(result)
        elif dry_run:
            _print_dry(result)
        else:
            _print(result)
        return 0

    run(servers, work)


def _print(result: dict[str, Any]) -> None:
    out = output.stdout()
    out.print(f"replayed {result['applied']:,} events in {result['seconds']:.1f} s", style="green")
    for table, counts in result["rows"].items():
        out.print(f"{output.printable(table)}: " + ", ".join(f"{n:,} {what}" for what, n in counts.items() if n))
    for what, count in result["suppressed_effects"].items():
        if count:
            out.print(f"suppressed: {count:,} {output.printable(what)}")


def _print_dry(result: dict[str, Any]) -> None:
    out = output.stdout()
    out.print(
        f"{result['events']:,} events on {result['streams']:,} streams, about {output.span(result['estimate_s'])};"
        f" tried out with the first {result['sampled']:,}, nothing of it stays",
        soft_wrap=True,
    )
    for event_type, count in sorted(result["by_type"].items()):
        out.print(output.type_text(event_type).append(f"  {count:,}"))
    if not result["tables"]:
        out.print("no row would change", style="green")
    for table, found in result["tables"].items():
        out.print(
            f"{output.printable(table)}: {found['changed']:,} rows would change ({found['new']:,} of them new),"
            f" {found['deleted']:,} be deleted",
            style="yellow",
        )
        for row in found["rows"]:
            out.print(output.printable("  " + difference(row["live"], row["new"])), soft_wrap=True)
    for name, count in result["appends"].items():
        out.print(f"would append {count:,} {output.printable(name)}", style="yellow")
    if result["appends_known"]:
        out.print(f"{result['appends_known']:,} appends are in the log already: they would do nothing")
    for what, count in result["outside_effects"].items():
        if count:
            out.print(f"with --with-effects, {count:,} {output.printable(what)} would go out", style="bold red")
    if not result["repeatable"]:
        out.print(
            "applying an event twice is not declared safe here: refused without --anyway; a rebuild is safe",
            style="red",
            soft_wrap=True,
        )
