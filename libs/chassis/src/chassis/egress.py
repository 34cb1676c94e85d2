"""HTTP to addresses that customers chose: bounded in time and size, never through a redirect, never to ourselves.

Judged is the address that a socket is about to connect to, in whatever form it comes and after all resolving: a name
says nothing, because it may resolve to something else a moment later (DNS rebinding).
"""

import asyncio
import socket
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp
from standardwebhooks import Webhook as Signer
from yarl import URL

RESPONSE_BYTES_MAX = 16 * 1024
"""Only the status counts. A connection whose answer is longer than this is closed."""
URL_LENGTH_MAX = 2048
CONNECTIONS_MAX = 512
_RESOLVE_TIMEOUT_S = 1.5
_URLS_REMEMBERED_MAX = 4096

Address = IPv4Address | IPv6Address

_NAT64: Final = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
"""RFC 6052 and RFC 8215: an IPv4 address behind a translator."""
_SPECIAL: Final = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"))
_SPECIAL_V6: Final = (IPv6Network("2001::/23"), IPv6Network("3fff::/20"))
"""Of the IANA special-purpose registries: what older versions of `ipaddress` take for global."""
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_ISATAP: Final = (0x5EFE, 0x0200_5EFE)
"""RFC 5214: the middle of an interface id that ends in an IPv4 address."""
_LOOPBACK: Final = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


class NotAllowed(ValueError):
    """The address is none that we send to."""


class _Refused(OSError):
    """The socket would have connected to an address that is not allowed."""


class Reply(NamedTuple):
    """What came of one request: a status, or why there is none."""

    status: int | None
    error: str | None
    """`timeout`, `url_not_allowed`, `tls_failed` or `connection_failed`."""
    retry_after: str | None = None
    """The header as it came."""


def is_public(address: Address) -> bool:
    """Whether the address belongs to the public internet; of an IPv6 address also the IPv4 address that it wraps."""
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast and not any(address in network for network in _SPECIAL)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if any(address in network for network in _NAT64):
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    if address.sixtofour is not None or address.teredo is not None or (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return False  # transition mechanisms that are no more: nobody's server is there
    if any(address in network for network in _SPECIAL_V6):
        return False
    return address in _GLOBAL_UNICAST and address.is_global and not address.is_multicast


def signed_headers(secrets: Sequence[str], message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """The headers of Standard Webhooks (standardwebhooks.com) for a JSON body, signed with each of the secrets."""
    text = body.decode()
    return {
        "Content-Type": "application/json",
        "User-Agent": "Sangam-Webhooks/1",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(_signer(secret).sign(message_id, at, text) for secret in secrets),
    }


@lru_cache(maxsize=4096)
def _signer(secret: str) -> Signer:
    return Signer(secret)


class Egress:
    """One pool of connections to public addresses, and to the ports of ours that the settings name. A context manager.

    Args:
        allowed: `host:port` with a literal address each, e.g. `127.0.0.1:4111`; plain http is allowed there alone.

    Raises:
        ValueError: one of `allowed` is something else.
    """

    def __init__(self, allowed: Iterable[str] = (), *, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._allowed: set[tuple[Address, int]] = set()
        for target in allowed:
            host, _, port = target.rpartition(":")
            address = ip_address(host.strip("[]"))
            # "localhost" may be either.
            self._allowed |= {(each, int(port)) for each in (_LOOPBACK if address.is_loopback else (address,))}
            self._allowed.add((address, int(port)))
        self._checked: dict[str, URL] = {}
        self._session: aiohttp.ClientSession | None = None
        self._trusted: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Egress":
        self._session = self._new_session(self._socket)
        self._trusted = self._new_session(None)
        return self

    async def __aexit__(self, *error: object) -> None:
        for session in (self._session, self._trusted):
            if session is not None:
                await session.close()

    def _new_session(self, socket_factory: "aiohttp.SocketFactoryType | None") -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ttl_dns_cache=10, socket_factory=socket_factory),
            timeout=aiohttp.ClientTimeout(total=self.timeout_s, sock_connect=min(5.0, self.timeout_s)),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # a small answer must not become a large one
            trust_env=False,
        )

    # What is allowed.

    def check(self, url: str) -> None:
        """Refuses what can be refused by its looks. Addresses are judged again when a socket connects to them.

        Raises:
            NotAllowed
        """
        self._url(url)

    async def check_host(self, url: str) -> None:
        """`check`, and what its host resolves to now: refuses early what a socket would not connect to.

        A host that does not resolve now may do so later.

        Raises:
            NotAllowed
        """
        host, port = self._host_and_port(url)
        try:
            async with asyncio.timeout(_RESOLVE_TIMEOUT_S):
                found = await asyncio.get_running_loop().getaddrinfo(
                    host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
                )
        except (OSError, TimeoutError, UnicodeError):
            return
        # Any of them may be the one that is connected to.
        if not all(self.allows(str(address[4][0]), port) for address in found):
            raise NotAllowed("this host is not on the public internet")

    def allows(self, host: str, port: int) -> bool:
        """Whether a socket may connect to the literal address `host`; whatever is no address is refused."""
        try:
            address = ip_address(host.partition("%")[0])
        except ValueError:
            return False
        return (address, port) in self._allowed or is_public(address)

    def _url(self, url: str) -> URL:
        known = self._checked.get(url)
        if known is None:
            self._host_and_port(url)
            if len(self._checked) >= _URLS_REMEMBERED_MAX:
                self._checked.clear()
            known = self._checked[url] = URL(url)
        return known

    def _host_and_port(self, url: str) -> tuple[str, int]:
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
        try:
            named: Address | None = ip_address(host)
        except ValueError:
            named = _LOOPBACK[0] if host == "localhost" or host.endswith(".localhost") else None
        ours = named is not None and (named, port) in self._allowed
        if parts.scheme != "https" and not (parts.scheme == "http" and ours):
            raise NotAllowed("only https is allowed")
        if named is not None and not ours and not is_public(named):
            raise NotAllowed("not a public address")
        return host, port

    def _socket(self, address: "aiohttp.AddrInfoType") -> socket.socket:
        """Called with each address that is about to be connected to, for literals too."""
        family, kind, protocol, _, target = address
        if not self.allows(str(target[0]), int(target[1])):
            raise _Refused("not allowed")
        return socket.socket(family, kind, protocol)

    # Sending.

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, trusted: bool = False) -> Reply:
        """One attempt. Never raises for what the other side does. `trusted`: our settings name the URL."""
        session = self._trusted if trusted else self._session
        assert session is not None, "used outside of its context"
        try:
            target = URL(url) if trusted else self._url(url)
            async with session.post(target, data=body, headers=headers, allow_redirects=False) as response:
                # Read to its end where it has one, so that the connection can be used again; else it is closed.
                left = RESPONSE_BYTES_MAX
                while left > 0 and (chunk := await response.content.read(left)):
                    left -= len(chunk)
                return Reply(response.status, None, response.headers.get("Retry-After"))
        except TimeoutError:
            return Reply(None, "timeout")
        except NotAllowed:
            return Reply(None, "url_not_allowed")
        except aiohttp.ClientSSLError:
            return Reply(None, "tls_failed")
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
