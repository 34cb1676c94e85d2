"""HTTP to addresses that customers chose: bounded in time and size, never through a redirect, never to ourselves.

Judged is the address that a socket is about to connect to, after all resolving: a name says nothing, because it may
resolve to something else a moment later (DNS rebinding).
"""

import socket
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp

RESPONSE_BYTES_MAX = 16 * 1024
"""Only the status counts; of a longer answer the rest is not read."""
URL_LENGTH_MAX = 2048
CONNECTIONS_MAX = 128

_NAT64: Final = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")


class NotAllowed(ValueError):
    """The address is none that we send to."""


class _Refused(OSError):
    """The socket would have connected to an address that is not allowed."""


class Reply(NamedTuple):
    """What came of one request: a status, or why there is none."""

    status: int | None
    error: str | None
    retry_after: str | None = None


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether the address belongs to the public internet; of an IPv6 address also the IPv4 address that it wraps."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if any(address in network for network in _NAT64):
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    if address.sixtofour is not None or address.teredo is not None:
        return False  # transition mechanisms that are no more
    return address in _GLOBAL_UNICAST and address.is_global and not address.is_multicast


class Egress:
    """One pool of connections to public addresses, and to the ports of ours that the settings name. A context manager.

    Args:
        allowed: `host:port` with a literal address each, e.g. `127.0.0.1:4111`; plain http is allowed there alone.
    """

    def __init__(self, allowed: Iterable[str] = (), *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._allowed: set[tuple[str, int]] = set()
        for target in allowed:
            host, _, port = target.rpartition(":")
            self._allowed.add((str(ip_address(host.strip("[]"))), int(port)))
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Egress":
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ttl_dns_cache=10, socket_factory=self._socket),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=min(5.0, self._timeout_s)),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # a small answer must not become a large one
            trust_env=False,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._session is not None:
            await self._session.close()

    def check(self, url: str) -> None:
        """Refuses what can be refused by its looks. Addresses are judged when a socket connects to them.

        Raises:
            NotAllowed
        """
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            raise NotAllowed("not a URL") from None
        host = parts.hostname
        if not host or len(url) > URL_LENGTH_MAX or any(ord(character) <= 0x20 for character in url):
            raise NotAllowed("not a URL")
        if parts.username is not None or parts.password is not None:
            raise NotAllowed("a URL must not contain credentials")
        if parts.scheme != "https" and not (parts.scheme == "http" and (host, port) in self._allowed):
            raise NotAllowed("only https is allowed")
        try:
            literal = ip_address(host)
        except ValueError:
            if host == "localhost" or host.endswith(".localhost"):
                raise NotAllowed("not a public address") from None
            return
        if not self._may_connect(str(literal), port):
            raise NotAllowed("not a public address")

    def _may_connect(self, host: str, port: int) -> bool:
        try:
            address = ip_address(host.partition("%")[0])
        except ValueError:
            return False
        return (str(address), port) in self._allowed or is_public(address)

    def _socket(self, address: "aiohttp.AddrInfoType") -> socket.socket:
        """Called with each address that is about to be connected to, for literals too."""
        family, kind, protocol, _, target = address
        if not self._may_connect(str(target[0]), int(target[1])):
            raise _Refused("not allowed")
        return socket.socket(family, kind, protocol)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """One attempt. Never raises for what the other side does."""
        assert self._session is not None, "used outside of its context"
        try:
            self.check(url)
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                left = RESPONSE_BYTES_MAX
                while left > 0 and (chunk := await response.content.read(left)):
                    left -= len(chunk)
                if left <= 0:
                    response.close()
                return Reply(response.status, None, response.headers.get("Retry-After"))
        except TimeoutError:
            return Reply(None, "timeout")
        except NotAllowed:
            return Reply(None, "url_not_allowed")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Reply(None, "url_not_allowed" if _was_refused(error) else "connection_failed")


def _was_refused(error: BaseException | None) -> bool:
    """Whether a refused address is behind it: several addresses of one host come as a group."""
    while error is not None:
        if isinstance(error, _Refused) or isinstance(getattr(error, "os_error", None), _Refused):
            return True
        if isinstance(error, BaseExceptionGroup) and any(_was_refused(member) for member in error.exceptions):
            return True
        error = error.__cause__ or error.__context__
    return False
