"""RabbitMQ as administrator: over AMQP for messages, over the management API for users and queues."""

import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlsplit

import aio_pika
import aiohttp
import typer

from events.cli.connection import read_env, run_directory
from events.outage import BROKER_ERRORS
from events.passwords import connect_broker, with_password

AmqpOption = Annotated[
    str | None,
    typer.Option(
        "--amqp",
        metavar="URL",
        help="RabbitMQ as administrator. Default: AMQP_URL, else that of .run/local.env.",
        show_default=False,
    ),
]

_MANAGEMENT_PORT = 15672


class BrokerRefused(Exception):
    """The broker does not do what was asked; the message says why."""


class _LoginRefused(BrokerRefused):
    """Nobody has this name and password."""


@dataclass(frozen=True)
class Broker:
    """One RabbitMQ server and vhost, as administrator."""

    url: str = field(repr=False)
    management_url: str

    @property
    def vhost(self) -> str:
        return unquote(urlsplit(self.url).path.removeprefix("/")) or "/"

    @property
    def address(self) -> str:
        """Without credentials, for people."""
        parts = urlsplit(self.url)
        return f"{parts.hostname}:{parts.port or 5672}/{self.vhost}"

    @contextlib.asynccontextmanager
    async def channel(self) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
        """A channel with publisher confirms.

        Raises:
            BrokerRefused: there is no way to the broker.
        """
        try:
            connection = await connect_broker(self.url, "sangam")
        except BROKER_ERRORS as error:
            raise BrokerRefused(f"{self.address}: cannot connect ({error or type(error).__name__})") from error
        async with connection:
            yield await connection.channel(publisher_confirms=True, on_return_raises=True)

    async def call(self, method: str, path: str, body: object = None) -> Any:
        """The management API, below `/api`; None where there is nothing (404).

        Raises:
            BrokerRefused: it is away, or says no.
        """
        return await with_password(self.url, lambda url: self._call_as(url, method, path, body), refused=_LoginRefused)

    async def _call_as(self, url: str, method: str, path: str, body: object) -> Any:
        parts = urlsplit(url)
        auth = aiohttp.BasicAuth(unquote(parts.username or "guest"), unquote(parts.password or "guest"))
        timeout = aiohttp.ClientTimeout(total=15)
        try:
            async with (
                aiohttp.ClientSession(auth=auth, timeout=timeout) as session,
                session.request(method, f"{self.management_url}/api{path}", json=body) as response,
            ):
                content = await response.text()
                if response.status == 404:
                    return None
                if response.status >= 400:
                    refusal = _LoginRefused if response.status == 401 else BrokerRefused
                    raise refusal(f"{method} {path}: {response.status} {content[:200]}")
                return json.loads(content) if content else True
        except (aiohttp.ClientError, TimeoutError) as error:
            raise BrokerRefused(f"the management API at {self.management_url} does not answer ({error!r})") from error

    def in_vhost(self, *path: str) -> str:
        """Names below the vhost, quoted: `/queues` → `/queues/sangam/…`."""
        kind, *names = path
        return "/".join([kind, quote(self.vhost, safe=""), *(quote(name, safe="") for name in names)])


def find_broker(amqp: str | None, env: Path | None) -> Broker:
    """From the options, the environment or the local stack, in this order.

    Raises:
        typer.BadParameter: no URL.
    """
    run = run_directory()
    url = amqp or (read_env(env).get("AMQP_URL") if env is not None else None) or os.environ.get("AMQP_URL")
    if url is None and run is not None:
        url = read_env(run / "local.env").get("AMQP_URL")
    if url is None:
        raise typer.BadParameter("where is RabbitMQ? Give --amqp, set AMQP_URL, or `make up`")
    management = os.environ.get("RABBITMQ_MANAGEMENT_URL")
    if management is None:
        host, port = urlsplit(url).hostname or "localhost", _MANAGEMENT_PORT
        beside = env.parent if env is not None else run
        if amqp is None and beside is not None:
            with contextlib.suppress(OSError, ValueError, KeyError):
                port = json.loads((beside / "ports.json").read_text())["management"]
        management = f"http://{host}:{port}"
    return Broker(url, management.rstrip("/"))
