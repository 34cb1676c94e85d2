"""`sangam rewrap`: the keys of persons, wrapped with a new master key."""

import os

import typer

from events import sealing
from events.cli import output
from events.cli.connection import EnvOption, OperatorOption, ReasonOption, StoreOption, acting, find_servers, run

_VARIABLE = "SUBJECT_MASTER_KEY"


def rewrap(
    operator: OperatorOption = None,
    reason: ReasonOption = None,
    store: StoreOption = None,
    env: EnvOption = None,
) -> None:
    """Wrap every person's key with the first of the two master keys in SUBJECT_MASTER_KEY (`new,former`).

    The services must know both by then (docs/runbook.md, 'Secrets'). Afterwards the former one opens nothing any more.

    Example: SUBJECT_MASTER_KEY="$new,$former" sangam rewrap --reason 'yearly'
    """
    servers = find_servers(store, env)
    master_key = os.environ.get(_VARIABLE, "")
    if master_key.count(",") != 1:
        raise typer.BadParameter(f"{_VARIABLE} must hold the new and the former master key, with a comma between")

    async def work() -> int:
        async with acting(servers, "rewrap", "subject keys", operator=operator, reason=reason) as act:
            count = await sealing.rewrap(servers.database_url("subject_keys"), master_key)
            act.detail["keys"] = str(count)
        output.stdout().print(f"{count:,} keys are wrapped with the new master key")
        return 0

    run(servers, work)
