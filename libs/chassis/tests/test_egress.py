"""Where customers' addresses may lead, judged at the socket; bounds of what is read; signatures that others verify."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_asyncio
from chassis.egress import Egress, NotAllowed, Reply, is_public, signed_headers
from standardwebhooks import Webhook

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
    assert not Egress(timeout_s=1).allows(address, 443)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_that_are_public(address: str) -> None:
    assert Egress(timeout_s=1).allows(address, 443)


def test_what_the_settings_name_is_allowed_with_that_port_only() -> None:
    egress = Egress(["127.0.0.1:4111"], timeout_s=1)
    assert egress.allows("127.0.0.1", 4111)
    assert egress.allows("::1", 4111)
    assert not egress.allows("127.0.0.1", 4112)
    assert not egress.allows("not an address", 4111)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/", "ftp://example.com/", "file:///etc/passwd", "https://", "https:///x", "example.com",
        "https://user:pass@example.com/", "https://example.com:99999/", "https://[::1/", "https://exa mple.com/",
        "https://example.com/\r\nX: y", "http://127.0.0.1:4112/", "https://127.0.0.1/", "https://[::1]/",
        "https://[::ffff:10.0.0.1]/", "https://x.localhost/", "gopher://x", "https://" + "x" * 3000,
    ],
)  # fmt: skip
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(NotAllowed):
        Egress(["127.0.0.1:4111"], timeout_s=1).check(url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:4111/x", "http://localhost:4111/", "https://hooks.example.com/a?b=c"]
)
def test_urls_that_look_allowed(url: str) -> None:
    Egress(["127.0.0.1:4111"], timeout_s=1).check(url)


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f.1", "127.1"])
async def test_names_of_ours_are_refused_before_anything_is_sent(host: str) -> None:
    with pytest.raises(NotAllowed):
        await Egress(timeout_s=1).check_host(f"https://{host}/")


async def test_a_host_with_one_address_of_ours_among_public_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def several(*_: Any, **__: Any) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("8.8.8.8", "10.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", several)
    with pytest.raises(NotAllowed):
        await Egress(timeout_s=1).check_host("https://hooks.example.com/")


async def test_a_host_that_does_not_resolve_yet_may_do_so_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    await Egress(timeout_s=1).check_host("https://hooks.example.com/")


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


async def post(port: int, *, allowed: bool, host: str = "127.0.0.1", timeout_s: float = 1.0) -> Reply:
    named = [f"127.0.0.1:{port}"] if allowed else []
    async with Egress(named, timeout_s=timeout_s) as egress:
        scheme = "http" if allowed and host in ("127.0.0.1", "localhost") else "https"
        return await egress.post(f"{scheme}://{host}:{port}/", {"Content-Type": "application/json"}, b"{}")


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def test_an_allowed_target_is_reached(server: Any) -> None:
    assert (await post(await server(answering(OK)), allowed=True)).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f.1", "2130706433"])
async def test_no_socket_connects_to_what_is_not_allowed(server: Any, host: str) -> None:
    reached: list[bytes] = []
    reply = await post(await server(answering(OK, reached)), allowed=False, host=host)
    assert reply.error in ("url_not_allowed", "connection_failed")
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
    reply = await post(port, allowed=False, host="hooks.example.com")
    assert asked == ["hooks.example.com"]
    assert reply.error == "url_not_allowed"
    assert reached == []


async def test_redirects_are_not_followed(server: Any) -> None:
    reached: list[bytes] = []
    inner = await server(answering(OK, reached))
    moved = f"HTTP/1.1 307 Moved\r\nLocation: http://127.0.0.1:{inner}/\r\nContent-Length: 0\r\n\r\n".encode()
    reply = await post(await server(answering(moved)), allowed=True)
    assert (reply.status, reached) == (307, [])


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
    reply = await post(await server(endless), allowed=True, timeout_s=0.5)
    assert time.monotonic() - started_s < 2
    assert reply.status == 200 if len(drip) > 1 else reply.error == "timeout"
    await asyncio.sleep(0.1)
    assert sent < 3_000_000, "the connection is closed, not drained"


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, b"\x00\xff nonsense\r\n\r\n"])
async def test_nonsense_and_endless_heads_are_failures(server: Any, head: bytes) -> None:
    reply = await post(await server(answering(head)), allowed=True, timeout_s=0.5)
    assert reply.status is None
    assert reply.error in ("timeout", "connection_failed")


def test_what_we_sign_standardwebhooks_verifies_with_each_secret() -> None:
    secrets = ["whsec_" + "A" * 32, "whsec_" + "B" * 32]
    now = datetime.now(UTC)
    body = '{"text": "₹12,34,567.50"}'.encode()
    headers = signed_headers(secrets, "msg_1", now, body)
    for secret in secrets:
        assert Webhook(secret).verify(body, headers) == {"text": "₹12,34,567.50"}
