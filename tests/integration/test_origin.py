"""The single origin: routing by prefix, limits, stripped headers, and nginx's own errors as problem documents."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import packages
import ports
import pytest
from aiohttp import web
from health import why_not_200
from nginx import HEALTH_PATH, IDENTITY_HEADERS, ROUTES, NginxServer
from rabbitmq import SERVICES
from supervisor import Program, Supervisor

pytestmark = pytest.mark.integration

KIB = 1024
SERVICE = web.AppKey("service", str)


class Origin(NamedTuple):
    url: str
    upstreams: dict[str, int]


async def answer(request: web.Request) -> web.StreamResponse:
    """Tells what arrived; a WebSocket gets its first message back."""
    if request.headers.get("Upgrade") == "websocket":
        socket = web.WebSocketResponse(protocols=["bearer"])
        await socket.prepare(request)
        await socket.send_str(await socket.receive_str())
        await socket.close()
        return socket
    return web.json_response(
        {
            "service": request.app[SERVICE],
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": len(await request.read()),
        }
    )


def start_nginx(upstreams: dict[str, int], requests_per_s: int) -> tuple[Supervisor, str]:
    packages.require(["nginx"], print)
    directory = Path(tempfile.mkdtemp(prefix="sangam-origin-", dir="/var/tmp"))
    directory.chmod(0o711)  # pytest's own folders are private; nginx's worker has to get through
    port = ports.assign(directory / "ports.json", {"nginx": None})["nginx"]
    replicas = {service: [port] for service, port in upstreams.items()}
    server = NginxServer(directory, port=port, upstreams=replicas, requests_per_s=requests_per_s, disposable=True)
    server.prepare()
    supervisor = Supervisor(directory / "logs", str(directory), doomed=[directory])
    try:
        supervisor.start([server.program()])
        supervisor.wait_ready(timeout_s=15)
    except BaseException:
        supervisor.close()
        raise
    return supervisor, f"http://127.0.0.1:{port}"


@pytest.fixture
async def upstreams() -> AsyncIterator[dict[str, int]]:
    """A real HTTP server in place of each service."""
    runners: list[web.AppRunner] = []
    listening: dict[str, int] = {}
    for service in SERVICES:
        app = web.Application(client_max_size=4 * KIB * KIB)
        app[SERVICE] = service
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        listening[service] = runner.addresses[0][1]
    yield listening
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
def origin(upstreams: dict[str, int]) -> Iterator[Origin]:
    supervisor, url = start_nginx(upstreams, requests_per_s=10_000)
    yield Origin(url, upstreams)
    supervisor.close()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def problem_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    assert response.content_type == "application/problem+json"
    problem: dict[str, Any] = await response.json(content_type=None)
    assert problem["status"] == response.status
    assert response.headers["X-Request-Id"] == problem["request_id"]
    return problem


@pytest.mark.parametrize(
    ("path", "service"),
    [
        ("/api/auth/login", "identity"),
        ("/.well-known/jwks.json", "identity"),
        ("/oauth/token", "identity"),
        ("/api/accounts", "ledger_transfer"),
        ("/api/accounts/1/balance?as_of=2026-01-01T00:00:00Z", "ledger_transfer"),
        ("/api/transfers/bulk", "ledger_transfer"),
        ("/api/transactions", "ledger_transfer"),
        ("/api/auto-replenish/1", "ledger_transfer"),
        ("/api/sync/feeds/bfc", "sync_gateway"),
        ("/api/sync/conflicts", "sync_gateway"),
        ("/api/wealth/net-worth", "wealth"),
        ("/api/notifications/smart", "notifier"),
        ("/api/search?q=salary", "search"),
    ],
)
async def test_each_prefix_reaches_its_service(
    origin: Origin, http: aiohttp.ClientSession, path: str, service: str
) -> None:
    async with http.get(origin.url + path) as response:
        assert (await response.json())["service"] == service


@pytest.mark.parametrize(
    "path",
    ["/", "/health/ready", "/metrics", "/api/searching", "/api", "/api/auth/..%2f..%2fmetrics/../../../metrics"],
)
async def test_nothing_else_is_routed(origin: Origin, http: aiohttp.ClientSession, path: str) -> None:
    async with http.get(origin.url + path) as response:
        assert response.status == 404
        assert (await problem_of(response))["code"] == "not_found"


async def test_a_client_cannot_say_who_it_is(origin: Origin, http: aiohttp.ClientSession) -> None:
    claims = dict.fromkeys(IDENTITY_HEADERS, "mallory")
    claims |= {"X-Forwarded-For": "8.8.8.8", "X-Real-IP": "8.8.8.8", "X-Forwarded-Proto": "https"}
    async with http.get(f"{origin.url}/api/accounts", headers=claims) as response:
        arrived = (await response.json())["headers"]
    assert "mallory" not in arrived.values()
    assert arrived["x-forwarded-for"] == "127.0.0.1"
    assert arrived["x-real-ip"] == "127.0.0.1"
    assert arrived["x-forwarded-proto"] == "http"


async def test_credentials_and_tracing_headers_pass(origin: Origin, http: aiohttp.ClientSession) -> None:
    sent = {"Authorization": "Bearer t", "Idempotency-Key": "k", "traceparent": "00-1-2-01", "X-Request-Id": "r"}
    async with http.post(f"{origin.url}/api/transfers", headers=sent) as response:
        arrived = (await response.json())["headers"]
    assert {name: arrived[name.lower()] for name in sent} == sent


@pytest.mark.parametrize(("path", "largest"), [("/api/sync/feeds/bfc", KIB * KIB), ("/api/transfers/bulk", 256 * KIB)])
async def test_body_limit(origin: Origin, http: aiohttp.ClientSession, path: str, largest: int) -> None:
    async with http.post(origin.url + path, data=b"x" * largest) as response:
        assert (await response.json())["body"] == largest
    async with http.post(origin.url + path, data=b"x" * (largest + 1)) as response:
        assert response.status == 413
        assert (await problem_of(response))["code"] == "payload_too_large"


async def test_an_enormous_token_is_refused(origin: Origin) -> None:
    # Over a bare connection: a client library gives up when the answer comes while it is still sending.
    host, _, port = origin.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /api/accounts HTTP/1.1\r\nHost: sangam\r\nAuthorization: Bearer " + b"x" * 100 * KIB)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in head
    writer.close()


@pytest.mark.parametrize("path", [f"/{route.pattern}" for route in ROUTES if route.websocket])
async def test_a_websocket_passes(origin: Origin, http: aiohttp.ClientSession, path: str) -> None:
    async with http.ws_connect(origin.url + path, protocols=["bearer", "token"]) as socket:
        await socket.send_str("नमस्ते")
        assert await socket.receive_str(timeout=5) == "नमस्ते"
        assert socket.protocol == "bearer"


async def test_a_service_that_is_away_is_a_503_problem(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    closed = ports.assign(tmp_path / "closed.json", dict.fromkeys(SERVICES))
    supervisor, url = start_nginx(closed, requests_per_s=1000)
    try:
        async with http.get(f"{url}/api/wealth/net-worth") as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"
            assert (await problem_of(response))["code"] == "unavailable"
    finally:
        supervisor.close()


async def test_one_client_is_limited(upstreams: dict[str, int], http: aiohttp.ClientSession) -> None:
    supervisor, url = start_nginx(upstreams, requests_per_s=1)
    try:
        statuses = []
        for _ in range(6):
            async with http.get(f"{url}/api/accounts") as response:
                statuses.append(response.status)
                if response.status == 429:
                    assert response.headers["Retry-After"] == "1"
                    assert (await problem_of(response))["code"] == "rate_limited"
        assert statuses[0] == 200
        assert 429 in statuses
    finally:
        supervisor.close()


CONTAINERS = Path(__file__).parents[2] / "deploy" / "k8s" / "base" / "edge" / "nginx.conf"


@pytest.mark.parametrize(("proxy", "told"), [("127.0.0.1", "203.0.113.9"), ("10.0.0.0/8", "127.0.0.1")])
async def test_the_file_of_the_containers_works_and_believes_only_the_gateway_in_front(
    upstreams: dict[str, int], http: aiohttp.ClientSession, proxy: str, told: str
) -> None:
    packages.require(["nginx"], print)
    directory = Path(tempfile.mkdtemp(prefix="sangam-origin-", dir="/var/tmp"))
    directory.chmod(0o711)
    port = ports.assign(directory / "ports.json", {"nginx": None})["nginx"]
    text = CONTAINERS.read_text().replace(" /tmp/", f" {directory}/").replace("listen 8080", f"listen 127.0.0.1:{port}")
    for service, upstream in upstreams.items():
        text = text.replace(f"{service.replace('_', '-')}:8080", f"127.0.0.1:{upstream}")
    (directory / "nginx.conf").write_text(text.replace("/etc/nginx/proxies", str(directory)))
    (directory / "gateway.conf").write_text(f"set_real_ip_from {proxy};\nreal_ip_header X-Forwarded-For;\n")
    # nginx.conf itself would match the pattern of the files that are included.
    (directory / "nginx.conf").rename(directory / "main")
    binary = packages.find("nginx")
    assert binary is not None
    health = f"http://127.0.0.1:{port}{HEALTH_PATH}"
    supervisor = Supervisor(directory / "logs", str(directory), doomed=[directory])
    try:
        supervisor.start(
            [
                Program(
                    name="nginx",
                    argv=[str(binary), "-p", str(directory), "-c", str(directory / "main"), "-e", "stderr"],
                    environment={"PATH": "/usr/sbin:/usr/bin:/bin"},
                    directory=directory,
                    address=health,
                    ready=lambda: why_not_200(health),
                    disposable=True,
                )
            ]
        )
        supervisor.wait_ready(timeout_s=15)
        claim = {"X-Forwarded-For": "203.0.113.9", "X-User-Id": "mallory"}
        async with http.get(f"http://127.0.0.1:{port}/api/wealth/summary", headers=claim) as response:
            answer_ = await response.json()
        assert answer_["service"] == "wealth"
        assert answer_["headers"]["x-real-ip"] == told
        assert "x-user-id" not in answer_["headers"]
    finally:
        supervisor.close()
