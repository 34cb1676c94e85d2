"""Where webhooks may go, judged at the socket; bounds of what is read; what a retry schedule makes of an answer."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_asyncio
from standardwebhooks import Webhook
from sync_gateway.addresses import AllowedTargets, is_public
from sync_gateway.outbound import Outbound, UrlNotAllowed, signed_headers, split_url
from sync_gateway.retries import Answer, retry_after_s, verdict

FORBIDDEN = [
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "192.0.0.8", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "2001:db8::1", "100::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::8.8.8.8",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::1", "2002:808:808::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:a00:1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))
    assert not AllowedTargets().allows(address, 443)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_that_are_public(address: str) -> None:
    assert AllowedTargets().allows(address, 443)


def test_what_the_settings_name_is_allowed_with_that_port_only() -> None:
    targets = AllowedTargets(["127.0.0.1:4111"])
    assert targets.allows("127.0.0.1", 4111)
    assert targets.allows("::1", 4111)
    assert not targets.allows("127.0.0.1", 4112)
    assert not targets.allows("not an address", 4111)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "ftp://example.com/", "file:///etc/passwd", "https://", "https:///x", "example.com",
        "https://user:pass@example.com/", "https://example.com:99999/", "https://[::1/", "https://exa mple.com/",
        "https://example.com/\r\nX: y", "http://127.0.0.1:4112/", "gopher://x", "https://" + "x" * 3000,
    ],
)  # fmt: skip
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(UrlNotAllowed):
        split_url(url, AllowedTargets(["127.0.0.1:4111"]))


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Callable[[Serve], Awaitable[int]]]:
    """Starts servers that speak whatever a test wants; gives their port."""
    started: list[asyncio.Server] = []

    async def start(serve: Serve) -> int:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        started.append(listener)
        port: int = listener.sockets[0].getsockname()[1]
        return port

    yield start
    for listener in started:
        listener.close()


def answering(text: bytes, connections: list[bytes] | None = None) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if connections is not None:
            connections.append(head)
        writer.write(text)
        await writer.drain()

    return serve


async def post(port: int, *, allowed: bool, host: str = "127.0.0.1", timeout_s: float = 1.0) -> Answer:
    named = [f"127.0.0.1:{port}"] if allowed else []
    async with Outbound(AllowedTargets(named), timeout_s=timeout_s) as outbound:
        scheme = "http" if allowed and host in ("127.0.0.1", "localhost") else "https"
        return await outbound.post(f"{scheme}://{host}:{port}/", {"Content-Type": "application/json"}, b"{}")


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def test_an_allowed_target_is_reached(server: Any) -> None:
    assert (await post(await server(answering(OK)), allowed=True)).ok


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433"])
async def test_no_socket_connects_to_what_is_not_allowed(server: Any, host: str) -> None:
    reached: list[bytes] = []
    answer = await post(await server(answering(OK, reached)), allowed=False, host=host)
    assert answer.error in ("url_not_allowed", "connection_failed")
    assert reached == []


async def test_dns_rebinding_is_caught_at_the_socket(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A public address when it was registered, ours when it is connected to."""
    reached: list[bytes] = []
    port = await server(answering(OK, reached))
    asked: list[str] = []
    loop = asyncio.get_running_loop()

    async def rebound(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(loop, "getaddrinfo", rebound)
    answer = await post(port, allowed=False, host="hooks.example.com")
    assert asked == ["hooks.example.com"]
    assert answer.error == "url_not_allowed"
    assert reached == []


async def test_redirects_are_not_followed(server: Any) -> None:
    reached: list[bytes] = []
    inner = await server(answering(OK, reached))
    moved = f"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:{inner}/\r\nContent-Length: 0\r\n\r\n".encode()
    answer = await post(await server(answering(moved)), allowed=True)
    assert (answer.code, answer.ok, reached) == (307, False, [])


@pytest.mark.parametrize("drip", [b"x" * 4096, b"x"], ids=["fast", "slow"])
async def test_an_answer_that_never_ends_is_bounded(server: Any, drip: bytes) -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"%x\r\n%s\r\n" % (len(drip), drip))
            sent += len(drip)
            await writer.drain()
            await asyncio.sleep(0.001 if len(drip) > 1 else 0.05)

    started_s = time.monotonic()
    answer = await post(await server(endless), allowed=True, timeout_s=0.5)
    assert time.monotonic() - started_s < 2
    assert answer.ok if len(drip) > 1 else answer.error == "timeout"
    await asyncio.sleep(0.1)
    assert sent < 3_000_000, "the connection is closed, not drained"


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, b"\x00\xff nonsense\r\n\r\n"])
async def test_nonsense_and_endless_heads_are_failures(server: Any, head: bytes) -> None:
    answer = await post(await server(answering(head)), allowed=True, timeout_s=0.5)
    assert answer.code is None
    assert answer.error in ("timeout", "connection_failed")


def test_what_we_sign_standardwebhooks_verifies_with_each_secret() -> None:
    secrets = ["whsec_" + "A" * 32, "whsec_" + "B" * 32]
    now = datetime.now(UTC)
    body = '{"text": "₹12,34,567.50"}'.encode()
    headers = signed_headers(secrets, "msg_1", now, body)
    for secret in secrets:
        assert Webhook(secret).verify(body, headers) == {"text": "₹12,34,567.50"}


NOW = datetime(2026, 2, 12, 9, tzinfo=UTC)


def failed(code: int | None = 503, retry_after: float = 0.0) -> Answer:
    return Answer(code, None if code else "timeout", 1.0, retry_after)


@pytest.mark.parametrize(
    ("answer", "tries", "status", "pause_s"),
    [
        (Answer(200, None, 1), 1, "delivered", None),
        (Answer(204, None, 1), 3, "delivered", None),
        (failed(301), 1, "failed", 10),
        (failed(404), 1, "failed", 10),
        (failed(None), 2, "failed", 100),
        (failed(), 3, "exhausted", None),
        (failed(410), 1, "exhausted", None),
        (failed(429, 50), 1, "failed", 50),
        (failed(429, 5), 1, "failed", 10),
    ],
)
def test_what_follows_from_an_answer(answer: Answer, tries: int, status: str, pause_s: float | None) -> None:
    found = verdict(answer, tries, (10, 100), NOW, 0.5)
    assert found.status == status
    assert found.next_attempt_at == (None if pause_s is None else NOW + timedelta(seconds=pause_s))


def test_pauses_are_spread() -> None:
    pauses = [verdict(failed(), 1, (10,), NOW, chance).next_attempt_at for chance in (0.0, 0.25, 0.999)]
    seconds = [(pause - NOW).total_seconds() for pause in pauses if pause is not None]
    assert seconds == pytest.approx([8, 9, 12], abs=0.01)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0), ("7", 7), (" 7 ", 7), ("-1", 0), ("1e9", 0), ("99999999999999", 86400), ("soon", 0), ("٣", 0),
        ("Thu, 12 Feb 2026 09:01:00 GMT", 60), ("Thu, 12 Feb 2026 08:00:00 GMT", 0), ("Thu, 99 Foo", 0),
    ],
)  # fmt: skip
def test_retry_after(header: str | None, seconds: float) -> None:
    assert retry_after_s(header, NOW) == seconds
