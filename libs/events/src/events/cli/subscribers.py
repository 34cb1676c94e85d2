"""`sangam subscribers`: outside systems that read public events from the broker."""

import re
import secrets
from typing import Annotated, Any
from urllib.parse import quote, urlsplit, urlunsplit

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
from events.patterns import matching
from events.wire import EVENTS_EXCHANGE

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,40}", re.ASCII)
_PATTERN = re.compile(r"(?:[a-z0-9_]+|\*|#)(?:\.(?:[a-z0-9_]+|\*|#))*", re.ASCII)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Small letters, digits and dashes.")]


def add(
    name: NameArgument,
    types: Annotated[
        list[str],
        typer.Option("--types", metavar="PATTERN", help="What it may read: `ledger.#`. Give it again for more."),
    ],
    max_mib: Annotated[
        int,
        typer.Option("--max-mib", min=1, max=10_240, help="Bound of its queue; what overflows, oldest first, is lost."),
    ] = 256,
    reason: ReasonOption = None,
    operator: OperatorOption = None,
    store: StoreOption = None,
    amqp: AmqpOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give an outside system credentials, a bounded queue, and the public event types it may read.

    It gets a user `subscriber-NAME` that may read its own queue `subscriber.NAME` and nothing else; the password is
    shown once. Given again, the types and the password change. What it misses, it reads at GET /api/sync/events?after=.

    Example: sangam subscribers add tax-office --types 'ledger.transfer.*'
    """
    _check(name)
    for pattern in types:
        if _PATTERN.fullmatch(pattern) is None:
            raise typer.BadParameter(f"{pattern!r} is no topic pattern; write ledger.transfer.* or ledger.#")
    if not matching_public(types):
        raise typer.BadParameter("no public event type is like that: see /docs/events")
    servers, broker = find_servers(store, env), find_broker(amqp, env)
    password = secrets.token_urlsafe(24)

    async def work() -> int:
        async with acting(
            servers, "subscribers add", name, operator=operator, reason=reason, arguments={"types": " ".join(types)}
        ):
            await _create(broker, name, types, password, max_mib)
        parts = urlsplit(broker.url)
        host = (parts.hostname or "localhost") + (f":{parts.port}" if parts.port else "")
        url = urlunsplit(parts._replace(netloc=f"{_user(name)}:{quote(password)}@{host}"))
        told = {"subscriber": name, "user": _user(name), "password": password, "queue": _queue(name), "url": url}
        if as_json:
            output.print_json({**told, "types": types})
        else:
            out = output.stdout()
            for what, value in told.items():
                out.print(f"{what:<11}{value}", soft_wrap=True)
            out.print("the password is not shown again", style="yellow")
        return 0

    _run(servers, work)


def remove(
    name: NameArgument,
    reason: ReasonOption = None,
    operator: OperatorOption = None,
    store: StoreOption = None,
    amqp: AmqpOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take everything back: its connections end, its queue is deleted.

    Example: sangam subscribers remove tax-office --reason 'contract ended'
    """
    _check(name)
    servers, broker = find_servers(store, env), find_broker(amqp, env)

    async def work() -> int:
        if await broker.call("GET", f"/users/{_user(name)}") is None:
            output.complain(f"there is no subscriber {name}")
            return FOUND
        async with acting(servers, "subscribers remove", name, operator=operator, reason=reason):
            await broker.call("DELETE", f"/users/{_user(name)}")
            await broker.call("DELETE", broker.in_vhost("/queues", _queue(name)))
        if as_json:
            output.print_json({"removed": name})
        else:
            output.stdout().print(f"removed {name}", style="green")
        return 0

    _run(servers, work)


def list_subscribers(
    amqp: AmqpOption = None,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """List outside systems, what they read, and what waits for them.

    Example: sangam subscribers list
    """
    servers, broker = find_servers(store, env), find_broker(amqp, env)

    async def work() -> int:
        rows = [row async for row in _subscribers(broker)]
        if as_json:
            for row in rows:
                output.print_json(row)
            return 0
        shown = output.table("subscriber", "types", "readers", "waiting", "MiB", right=("readers", "waiting", "MiB"))
        for row in rows:
            mib = f"{row['bytes'] / 2**20:.1f} of {row['max_bytes'] / 2**20:.0f}"
            shown.add_row(
                output.printable(row["subscriber"]), output.printable(" ".join(row["types"])), str(row["readers"]),
                f"{row['messages']:,}", mib, style=None if row["readers"] else "yellow",
            )  # fmt: skip
        output.stdout().print(shown if rows else "there are no subscribers")
        return 0

    _run(servers, work)


def matching_public(types: list[str]) -> list[str]:
    """The public event types that any of the patterns means."""
    from events.contracts import registered

    public = frozenset(each.type for each in registered() if each.public)
    return sorted({found for pattern in types for found in matching(pattern, public)})


async def _subscribers(broker: Broker) -> Any:
    for queue in await broker.call("GET", broker.in_vhost("/queues")) or []:
        if not queue["name"].startswith("subscriber."):
            continue
        bindings = await broker.call("GET", broker.in_vhost("/queues", queue["name"]) + "/bindings") or []
        yield {
            "subscriber": queue["name"].removeprefix("subscriber."),
            "types": sorted(each["routing_key"] for each in bindings if each["source"] == EVENTS_EXCHANGE),
            "readers": queue.get("consumers", 0),
            "messages": queue.get("messages", 0),
            "bytes": queue.get("message_bytes", 0),
            "max_bytes": queue["arguments"].get("x-max-length-bytes", 0),
        }


async def _create(broker: Broker, name: str, types: list[str], password: str, max_mib: int) -> None:
    user, queue = _user(name), _queue(name)
    arguments = {"x-queue-type": "quorum", "x-max-length-bytes": max_mib * 2**20, "x-overflow": "drop-head"}
    known = await broker.call("GET", broker.in_vhost("/queues", queue))
    if known is None:
        body = {"durable": True, "auto_delete": False, "arguments": arguments}
        await broker.call("PUT", broker.in_vhost("/queues", queue), body)
    elif known["arguments"].get("x-max-length-bytes") != arguments["x-max-length-bytes"]:
        raise BrokerRefused(f"{queue} exists with another bound; remove the subscriber first")
    bindings = await broker.call("GET", broker.in_vhost("/queues", queue) + "/bindings") or []
    bound = {each["routing_key"] for each in bindings if each["source"] == EVENTS_EXCHANGE}
    between = broker.in_vhost("/bindings") + f"/e/{quote(EVENTS_EXCHANGE, safe='')}/q/{quote(queue, safe='')}"
    for pattern in sorted(set(types) - bound):
        await broker.call("POST", between, {"routing_key": pattern, "arguments": {}})
    for each in bindings:
        if each["source"] == EVENTS_EXCHANGE and each["routing_key"] not in types:
            await broker.call("DELETE", f"{between}/{quote(each['properties_key'], safe='')}")
    await broker.call("PUT", f"/users/{user}", {"password": password, "tags": ""})
    own = re.escape(queue)
    # It may bind its queue again, which needs `write` on it, but only to topics it may read.
    allowed = {"configure": "^$", "write": f"^{own}$", "read": rf"^({own}|{re.escape(EVENTS_EXCHANGE)})$"}
    await broker.call("PUT", f"/permissions/{quote(broker.vhost, safe='')}/{user}", allowed)
    topics = {"exchange": EVENTS_EXCHANGE, "write": "^$", "read": _topic_permission(types)}
    await broker.call("PUT", f"/topic-permissions/{quote(broker.vhost, safe='')}/{user}", topics)


def _topic_permission(types: list[str]) -> str:
    """A regular expression over binding keys: the patterns themselves, and every type or narrower pattern they mean."""
    words = {"*": r"[^.]+", "#": r".*"}
    each = (r"\.".join(words.get(word, re.escape(word)) for word in pattern.split(".")) for pattern in types)
    return "^(" + "|".join(each) + ")$"


def _check(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise typer.BadParameter(f"{name!r}: 2 to 41 small letters, digits and dashes")


def _user(name: str) -> str:
    return f"subscriber-{name}"


def _queue(name: str) -> str:
    return f"subscriber.{name}"


def _run(servers: Any, work: Any) -> None:
    async def told() -> int:
        try:
            return int(await work())
        except BrokerRefused as refusal:
            output.complain(str(refusal))
            return CANNOT_CONNECT

    run(servers, told)
