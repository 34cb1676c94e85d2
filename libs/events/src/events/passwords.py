"""Connects to PostgreSQL and RabbitMQ with one of several passwords, so that a password can be replaced at work.

The password of a URL may be a list, `postgresql://role:former,new@host/database`; a comma that belongs to a password is
written %2C. A server takes one of them, which one changes while a process runs, and only connecting tells. Whatever
connects with a URL of the settings does so here.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import aio_pika
import aiormq
import asyncpg
import structlog

log = structlog.get_logger(__name__)

POSTGRES, BROKER = ("postgresql", "postgres"), ("amqp", "amqps")
"""Schemes of URLs."""

_CONNECT_WITHIN_S = 5.0

_HOST_AND_PORT = re.compile(r"(\[[^\[\]@]+\]|[^:\[\]@]*)(:\d+)?")

_accepted: dict[str, str] = {}
"""By URL of the settings: the one of its `each` that the server took last. Without it every connection would first be
refused, and the server would log so, from the replacement until the restart."""

T = TypeVar("T")


def each(url: str) -> list[str]:
    """The URL with one of its passwords at a time, in their order; unchanged where it has no list."""
    parts = urlsplit(url)
    login, _, place = parts.netloc.rpartition("@")
    user, _, listed = login.partition(":")
    if "," not in listed:
        return [url]
    return [parts._replace(netloc=f"{user}:{password.strip()}@{place}").geturl() for password in listed.split(",")]


def check(url: str, schemes: tuple[str, ...]) -> None:
    """Sees that a URL is one, before a client takes a part of a password for something else and tells it.

    Args:
        schemes: `POSTGRES` or `BROKER`.

    Raises:
        ValueError: it is not; the message goes after the variable's name and holds nothing of the URL.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    login, _, place = parts.netloc.rpartition("@")
    if (
        parts.scheme not in schemes
        or "@" in login + parts.path
        or ("@" in parts.query and not login)
        or parts.fragment
        or not all(_HOST_AND_PORT.fullmatch(part) for part in place.split(","))
    ):
        raise ValueError(
            f"must look like {schemes[0]}://user:password@host:port/name, where / ? # @ and , of a password are"
            " %2F %3F %23 %40 and %2C"
        )
    _, _, listed = login.partition(":")
    if "," in listed and not all(password.strip() for password in listed.split(",")):
        raise ValueError("has an empty password in its list; a comma that belongs to a password is %2C")


async def with_password(
    url: str, attempt: Callable[[str], Awaitable[T]], *, refused: type[Exception] | tuple[type[Exception], ...]
) -> T:
    """What `attempt` gives for the URL with the first password that is not refused; the one that was taken last is
    tried first.

    Raises:
        Exception: what `attempt` raises: one of `refused` only if it does for every password.
    """
    candidates = each(url)
    expected = _accepted.get(url, candidates[0])
    refusal: Exception | None = None
    for candidate in sorted(candidates, key=lambda candidate: candidate != expected):
        try:
            made = await attempt(candidate)
        except refused as error:
            refusal = error
            continue
        if candidate != _accepted.get(url, candidates[0]):  # not said already by one that connected beside it
            parts = urlsplit(candidate)
            log.info(
                "password.another_accepted",
                server=parts.netloc.rpartition("@")[2] + parts.path,
                user=unquote(parts.username or ""),
                number=candidates.index(candidate) + 1,
            )
            _accepted[url] = candidate
        return made
    assert refusal is not None
    raise refusal


async def connect_postgres(dsn: str | None = None, **options: Any) -> asyncpg.Connection:
    """`asyncpg.connect` with these options; also what a pool connects with (`connect=`).

    Raises:
        OSError, TimeoutError, asyncpg.PostgresError: the server is not to be had, or takes none of the passwords.
    """

    async def attempt(candidate: str) -> asyncpg.Connection:
        return await asyncpg.connect(candidate, **options)

    # With PAM, LDAP or RADIUS behind it a server does not tell a wrong password from another refusal.
    return await with_password(dsn or "", attempt, refused=asyncpg.InvalidAuthorizationSpecificationError)


async def connect_broker(url: str, name: str) -> aio_pika.abc.AbstractConnection:
    """A connection to RabbitMQ; `name` is what its administrator sees.

    Raises:
        OSError, TimeoutError, aiormq.exceptions.AMQPError: the broker is not to be had, or takes none of the passwords.
    """

    async def attempt(candidate: str) -> aio_pika.abc.AbstractConnection:
        # Not the client's own timeout, which is asyncio.wait_for: on Python 3.11 it loses a cancellation that comes
        # with the connection, and who was to end would go on for ever.
        async with asyncio.timeout(_CONNECT_WITHIN_S):
            return await aio_pika.connect(candidate, client_properties={"connection_name": name})

    return await with_password(url, attempt, refused=aiormq.exceptions.ProbableAuthenticationError)
