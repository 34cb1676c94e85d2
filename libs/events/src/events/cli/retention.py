"""`sangam retention`: what services no longer need, told or deleted."""

from typing import Annotated

import typer

from events.cli import output
from events.cli.connection import (
    SERVICES,
    EnvOption,
    JsonOption,
    OperatorOption,
    ReasonOption,
    StoreOption,
    acting,
    find_servers,
    opened,
    run,
    service_name,
)
from events.cli.watching import outcome
from events.operations import RetentionRequest, ask


def retention(
    service: Annotated[list[str] | None, typer.Argument(metavar="[SERVICE…]", help="Default: all.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be deleted.")] = False,
    reason: ReasonOption = None,
    operator: OperatorOption = None,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete what services have kept for long enough: settled deliveries, old notifications, finished operations.

    Each service does it by itself every hour, too. RETENTION_DAYS of a service (`delivery=14,notification=800`) changes
    how long. The log is never deleted from; `sangam events archive` copies its old parts.

    Example: sangam retention --dry-run
    """
    servers = find_servers(store, env)
    services = [service_name(each) for each in service] if service else list(SERVICES)

    async def work() -> int:
        shown = output.table("service", "table", "kept for", "would go" if dry_run else "gone", right=("kept for",))
        for each in services:
            async with opened(servers.writable(each)) as database:
                if not await database.fetchval("SELECT to_regclass('operation') IS NOT NULL"):
                    continue  # it has never run
                async with acting(
                    servers, "retention", each, operator=operator, reason=reason, arguments={"dry_run": dry_run or None}
                ) as act:
                    request = RetentionRequest(dry_run=dry_run)
                    operation_id = await ask(await database.connection(), f"{each}.*", request, act.operator)
                    act.outcome, act.detail["operation"] = "handed_over", str(operation_id)
                result = await outcome(database, operation_id, wait=True, as_json=as_json)
            assert result is not None, "it was waited for"
            for done in result["tables"]:
                if as_json:
                    output.print_json({"service": each, "dry_run": dry_run, **done})
                else:
                    shown.add_row(each, done["table"], f"{done['days']:,} days", f"{done['rows']:,}")
        if not as_json:
            output.stdout().print(shown)
        return 0

    run(servers, work)
