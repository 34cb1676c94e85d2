"""`sangam consumers`: the watchdog. Who should read each queue, and who does."""

import asyncio
from typing import Annotated, Any

import aiormq
import typer

from events.cli import output
from events.cli.broker import AmqpOption, BrokerRefused, find_broker
from events.cli.connection import (
    CANNOT_CONNECT,
    FOUND,
    SERVICES,
    EnvOption,
    JsonOption,
    Servers,
    StoreOption,
    find_servers,
    opened,
    run,
)
from events.wire import DEAD_EXCHANGE, UNROUTED_EXCHANGE


def consumers(
    replicas: Annotated[int, typer.Option("--replicas", metavar="N", min=1, help="How many each should have.")] = 1,
    watch_s: Annotated[
        float | None, typer.Option("--watch", metavar="SECONDS", min=0.5, help="Look again and again, until Ctrl-C.")
    ] = None,
    store: StoreOption = None,
    amqp: AmqpOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare who should consume each queue with who does; also count dead and unrouted messages.

    A process heals itself: every five seconds it asks the broker whether its queue still has a reader, and connects
    anew if not. This looks from outside, for what no process is there to heal. Exit code 1 if a queue is missing or
    short of readers, or if a dead-letter queue holds anything.

    Example: sangam consumers --replicas 2 || page somebody
    """
    servers = find_servers(store, env)
    broker = find_broker(amqp, env)

    async def work() -> int:
        while True:
            try:
                async with broker.channel() as channel:
                    underlay = await channel.get_underlay_channel()
                    found = await _compare(underlay, await _expected(servers), replicas)
            except BrokerRefused as refusal:
                output.complain(str(refusal))
                return CANNOT_CONNECT
            _tell(found, as_json)
            if watch_s is None:
                return FOUND if any(each["problem"] for each in found) else 0
            await asyncio.sleep(watch_s)

    run(servers, work)


async def _expected(servers: Servers) -> list[str]:
    """The work consumers of every service: those that have ever run."""
    names: list[str] = []
    for service in SERVICES:
        async with opened(servers.database(service)) as database:
            if await database.fetchval("SELECT to_regclass('consumed') IS NOT NULL"):
                names += [row["consumer"] for row in await database.fetch("SELECT consumer FROM consumed ORDER BY 1")]
    return names


async def _compare(channel: aiormq.abc.AbstractChannel, expected: list[str], replicas: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in (*expected, DEAD_EXCHANGE, UNROUTED_EXCHANGE):
        readers = messages = None
        try:
            # A queue that is not there closes the channel: so one of its own for each.
            own = await channel.connection.channel()
            answer = await own.queue_declare(name, passive=True)
            readers, messages = answer.consumer_count, answer.message_count
            await own.close()
        except aiormq.exceptions.ChannelNotFoundEntity:
            pass
        wants = replicas if name in expected else 0
        problem = None
        if readers is None:
            problem = "there is no such queue"
        elif readers < wants:
            problem = f"{readers} of {wants} readers"
        elif not wants and messages:
            problem = f"{messages} messages that nobody could use: sangam dead list --queue {name}"
        found.append({"queue": name, "expected": wants, "readers": readers, "messages": messages, "problem": problem})
    return found


def _tell(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        output.print_json(found)
        return
    shown = output.table("queue", "readers", "expected", "messages", "", right=("readers", "expected", "messages"))
    for each in found:
        figures = [f"{each[name]:,}" if each[name] is not None else "–" for name in ("readers", "expected", "messages")]
        shown.add_row(
            output.printable(each["queue"]), *figures, each["problem"] or "", style="red" if each["problem"] else None
        )
    output.stdout().print(shown)
