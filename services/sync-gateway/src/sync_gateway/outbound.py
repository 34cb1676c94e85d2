"""HTTP to addresses that others chose: signed (Standard Webhooks), bounded in time and size, and never to ourselves."""

import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import SplitResult, urlsplit

import aiohttp
from aiohttp.abc import AbstractCookieJar
from standardwebhooks import Webhook as Signer

from sync_gateway.addresses import AllowedTargets
from sync_gateway.retries import Answer, retry_after_s

RESPONSE_BYTES_MAX = 16 * 1024
"""Only the status counts. A connection whose answer is longer than this is closed."""
CONNECTIONS_MAX = 512
URL_LENGTH_MAX = 2048


class UrlNotAllowed(ValueError):
    """The address is none that we send to."""


class _Refused(OSError):
    """The socket would have connected to an address that is not allowed."""


def split_url(url: str, targets: AllowedTargets) -> SplitResult:
    """The parts of a URL that looks allowed. Its host's addresses are judged when a socket connects to them.

    Raises:
        UrlNotAllowed
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise UrlNotAllowed("not a URL") from None
    host = parts.hostname
    if not host or len(url) > URL_LENGTH_MAX or any(ord(character) <= 0x20 for character in url):
        raise UrlNotAllowed("not a URL")
    if parts.username is not None or parts.password is not None:
        raise UrlNotAllowed("a URL must not contain credentials")
    if parts.scheme != "https" and not (parts.scheme == "http" and targets.names(host, port)):
        raise UrlNotAllowed("only https is allowed")
    return parts


def signed_headers(secrets: Sequence[str], message_id: str, at: datetime, body: bytes) -> dict[str, str]:
    """The headers of Standard Webhooks, with a signature for each secret (during a rotation there are two)."""
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


class Outbound:
    """One pool of connections for all webhooks of this process. Use it as an async context manager."""

    def __init__(self, targets: AllowedTargets, *, timeout_s: float) -> None:
        self.targets = targets
        self.timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._trusted: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Outbound":
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
            cookie_jar=_no_cookies(),
            auto_decompress=False,  # a small answer must not become a large one
            trust_env=False,
        )

    def _socket(self, address: "aiohttp.AddrInfoType") -> socket.socket:
        """Called with each address that is about to be connected to, after all resolving and for literals too."""
        family, kind, protocol, _, target = address
        host, port = str(target[0]), target[1]
        assert isinstance(port, int)
        if not self.targets.allows(host, port):
            raise _Refused("not allowed")
        return socket.socket(family, kind, protocol)

    async def post(self, url: str, headers: dict[str, str], body: bytes, *, trusted: bool = False) -> Answer:
        """One attempt. Never raises for what the other side does. `trusted`: our settings name the URL."""
        session = self._trusted if trusted else self._session
        assert session is not None, "used outside of its context"
        started_s = time.perf_counter()

        def answer(code: int | None, error: str | None, retry_after: str | None = None) -> Answer:
            latency_ms = (time.perf_counter() - started_s) * 1000
            return Answer(code, error, latency_ms, retry_after_s(retry_after, datetime.now(UTC)))

        try:
            if not trusted:
                split_url(url, self.targets)
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                # Read to its end where it has one, so that the connection can be used again.
                left = RESPONSE_BYTES_MAX
                while left > 0 and (chunk := await response.content.read(left)):
                    left -= len(chunk)
                if left <= 0:
                    response.close()
                return answer(response.status, None, response.headers.get("Retry-After"))
        except TimeoutError:
            return answer(None, "timeout")
        except UrlNotAllowed:
            return answer(None, "url_not_allowed")
        except aiohttp.ClientSSLError:
            return answer(None, "tls_failed")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            refused = isinstance(error, _Refused) or isinstance(getattr(error, "os_error", None), _Refused)
            return answer(None, "url_not_allowed" if refused or _refused(error) else "connection_failed")


def _refused(error: BaseException) -> bool:
    """Whether a refused address is what is behind it: several addresses of one host come as a group."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, _Refused):
            return True
        if isinstance(seen, BaseExceptionGroup) and any(_refused(member) for member in seen.exceptions):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _no_cookies() -> AbstractCookieJar:
    return aiohttp.DummyCookieJar()
