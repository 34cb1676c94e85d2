"""`sangam dead`: messages that nobody could use (`sangam.dead`) or that had no queue to go to (`sangam.unrouted`)."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, NamedTuple

import aio_pika
import typer

from events.cli import output
from events.cli.broker import AmqpOption, Broker, BrokerRefused, find_broker
from events.cli.connection import (
    CANNOT_CONNECT,
    FOUND,
    EnvOption,
    JsonOption,
    OperatorOption,
    ReasonOption,
    StoreOption,
    acting,
    find_servers,
    run,
)
from events.outage import BROKER_ERRORS
from events.wire import DEAD_EXCHANGE, UNROUTED_EXCHANGE

_SHOWN_BYTES = 200


class Queue(StrEnum):
    """The queues of dead letters."""

    DEAD = DEAD_EXCHANGE
    UNROUTED = UNROUTED_EXCHANGE


QueueOption = Annotated[Queue, typer.Option("--queue", help="Which of the two.")]
LimitOption = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Look at the first N.")]
IdsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[ID…]", help="From `dead list`; the first letters do.")
]
AllOption = Annotated[bool, typer.Option("--all", help="All that are looked at.")]


class Letter(NamedTuple):
    """A message taken from the queue and not acknowledged: it goes back unless it is."""

    id: str
    message: aio_pika.abc.AbstractIncomingMessage

    def told(self) -> dict[str, Any]:
        headers = self.message.headers
        at = self.message.timestamp
        return {
            "id": self.id,
            "came_to": str(headers.get("x-queue") or self.message.exchange or ""),
            "reason": str(headers.get("x-reason") or "no queue was bound"),
            "requeued": int(str(headers.get("x-requeued") or 0)),
            "bytes": len(self.message.body),
            "at": at.isoformat() if isinstance(at, datetime) else None,
            "headers": {name: str(value) for name, value in headers.items() if not name.startswith("x-")},
            "body": self.message.body[:_SHOWN_BYTES].decode(errors="backslashreplace"),
        }


def list_dead(
    queue: QueueOption = Queue.DEAD,
    limit: LimitOption = 100,
    amqp: AmqpOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """List dead letters, oldest first; they stay where they are.

    Example: sangam dead list --queue sangam.unrouted
    """
    broker = find_broker(amqp, env)

    async def work() -> int:
        async with _letters(broker, queue, limit) as letters:
            told = [letter.told() for letter in letters]
        if as_json:
            for each in told:
                output.print_json(each)
            return 0
        shown = output.table("id", "came to", "reason", "requeued", "bytes", "body", right=("requeued", "bytes"))
        for each in told:
            shown.add_row(
                each["id"], output.printable(each["came_to"]), output.printable(each["reason"]),
                str(each["requeued"]), f"{each['bytes']:,}", output.printable(each["body"][:60]),
            )  # fmt: skip
        output.stdout().print(shown if told else "no dead letters")
        return 0

    _run(broker, env, work, needs_store=False)


def requeue(
    ids: IdsArgument = None,
    everything: AllOption = False,
    queue: QueueOption = Queue.DEAD,
    limit: LimitOption = 1_000,
    reason: ReasonOption = None,
    operator: OperatorOption = None,
    store: StoreOption = None,
    amqp: AmqpOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send dead letters where they first came to; each leaves here only once it is confirmed there.

    Of use once the reader is corrected. What is still unreadable comes back, with its `requeued` one higher.

    Example: sangam dead requeue 3f9a
    """
    _dispose("dead requeue", ids, everything, queue, limit, reason, operator, store, amqp, env, as_json)


def discard(
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why they are of no use to anybody.")],
    ids: IdsArgument = None,
    everything: AllOption = False,
    queue: QueueOption = Queue.DEAD,
    limit: LimitOption = 1_000,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    operator: OperatorOption = None,
    store: StoreOption = None,
    amqp: AmqpOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Throw dead letters away, for ever. The log itself loses nothing: every event is there.

    Example: sangam dead discard --all --reason 'a batch of before the restore'
    """
    if not yes:
        typer.confirm("They are gone after this. Go on?", abort=True, err=True)
    _dispose("dead discard", ids, everything, queue, limit, reason, operator, store, amqp, env, as_json)


def _dispose(
    act_name: str,
    ids: list[str] | None,
    everything: bool,
    queue: Queue,
    limit: int,
    reason: str | None,
    operator: str | None,
    store: str | None,
    amqp: str | None,
    env: Any,
    as_json: bool,
) -> None:
    if bool(ids) == everything:
        raise typer.BadParameter("say which: ids from `dead list`, or --all")
    broker = find_broker(amqp, env)
    servers = find_servers(store, env)

    async def work() -> int:
        async with _letters(broker, queue, limit) as letters:
            named = {each.id for each in letters}
            # One of several alike is `3f9a…-1`: the whole id means that one, a shorter one all it begins.
            meant = {
                each
                for part in ids or ()
                for each in named
                if each == part or (part not in named and each.startswith(part))
            }
            chosen = [each for each in letters if everything or each.id in meant]
            unknown = [part for part in ids or () if not any(each.startswith(part) for each in named)]
            if unknown or not chosen:
                output.complain(f"{queue.value} has no letter {', '.join(unknown)}" if unknown else "no dead letters")
                return FOUND
            arguments = {"letters": len(chosen), "ids": " ".join(each.id for each in chosen[:20])}
            async with acting(
                servers, act_name, queue.value, operator=operator, reason=reason, arguments=arguments
            ) as act:
                failed = 0
                for letter in chosen:
                    try:
                        if act_name == "dead requeue":
                            await _send_back(letter)
                        await letter.message.ack()
                    except (BrokerRefused, aio_pika.exceptions.DeliveryError) as error:
                        failed += 1
                        output.complain(f"{letter.id}: {error}")
                act.detail["failed"] = str(failed)
        if as_json:
            output.print_json({"act": act_name, "letters": len(chosen) - failed, "failed": failed})
        else:
            output.stdout().print(f"{act_name.split()[1]}ed {len(chosen) - failed} letters", style="green")
        return FOUND if failed else 0

    _run(broker, env, work, store=store)


async def _send_back(letter: Letter) -> None:
    """Publishes it where it came from, and waits for the confirm. Unroutable: an error, and it stays."""
    message = letter.message
    headers = {name: value for name, value in message.headers.items() if name not in ("x-queue", "x-reason")}
    headers["x-requeued"] = int(str(message.headers.get("x-requeued") or 0)) + 1
    copy = aio_pika.Message(
        message.body,
        headers=headers,
        content_type=message.content_type,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        message_id=message.message_id,
    )
    channel: Any = message.channel
    target = message.headers.get("x-queue")
    exchange, key = ("", str(target)) if target else (message.exchange or "", message.routing_key or "")
    if not target and exchange in ("", UNROUTED_EXCHANGE, DEAD_EXCHANGE):
        raise BrokerRefused("nothing says where it came from; discard it")
    confirmed = await channel.basic_publish(
        copy.body, exchange=exchange, routing_key=key, properties=copy.properties, mandatory=True
    )
    if type(confirmed).__name__ != "Ack":
        raise BrokerRefused(f"nobody reads {key or exchange} at the moment; it stays here")


@asynccontextmanager
async def _letters(broker: Broker, queue: Queue, limit: int) -> AsyncIterator[list[Letter]]:
    """The first messages of the queue, held while inside; what is not acknowledged is back in its place after."""
    async with broker.channel() as channel:
        try:
            source = await channel.get_queue(queue.value, ensure=True)
        except BROKER_ERRORS as error:
            raise BrokerRefused(f"no queue {queue.value} in {broker.address}: {error}") from error
        letters: list[Letter] = []
        while len(letters) < limit:
            message = await source.get(fail=False, no_ack=False)
            if message is None:
                break
            headers = [item for item in message.headers.items() if item[0] != "x-delivery-count"]  # grows by looking
            marks = repr((message.exchange, message.routing_key, sorted(map(str, headers))))
            digest = hashlib.sha256(marks.encode() + message.body).hexdigest()[:12]
            same = sum(each.id.split("-")[0] == digest for each in letters)
            letters.append(Letter(f"{digest}-{same}" if same else digest, message))
        try:
            yield letters
        finally:
            await channel.close()


def _run(broker: Broker, env: Any, work: Any, *, store: str | None = None, needs_store: bool = True) -> None:
    async def told() -> int:
        try:
            return int(await work())
        except BrokerRefused as refusal:
            output.complain(str(refusal))
            return CANNOT_CONNECT

    run_with = find_servers(store, env) if needs_store else None
    if run_with is not None:
        run(run_with, told)
    else:
        run_alone(told)


def run_alone(work: Any) -> None:
    """Runs a command that needs the broker only."""
    import uvloop

    if code := uvloop.run(work()):
        raise typer.Exit(code)
