"""A service as a process: it waits for what is not up yet, says how it is, and stops without breaking anything."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest
from chassis.access import VerificationKeys, active_keys
from events.contracts import identity
from recording import recorded

if TYPE_CHECKING:
    from provision import Cell

SERVICE = "search"
PROGRAM = Path(__file__).with_name("sample_service.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Sample:
    """The running process and what it has logged."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.lines: list[dict[str, Any]] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    async def until(self, condition: Any, timeout_s: float = 20.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not (await condition() if asyncio.iscoroutinefunction(condition) else condition()):
                assert self.process.returncode is None, self.lines
                await asyncio.sleep(0.02)

    async def ready(self) -> tuple[int, dict[str, Any]]:
        try:
            async with aiohttp.ClientSession() as http, http.get(f"{self.url}/health/ready") as response:
                return response.status, await response.json(content_type=None)
        except aiohttp.ClientConnectionError:
            return 0, {}

    async def is_ready(self) -> bool:
        return (await self.ready())[0] == 200

    async def exit_code(self) -> int:
        code = await asyncio.wait_for(self.process.wait(), 20)
        await self._reading
        return code


@contextlib.asynccontextmanager
async def running(**environment: str) -> AsyncIterator[Sample]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAM),
        stdout=asyncio.subprocess.PIPE,
        env={
            "PATH": os.environ["PATH"],
            "SAMPLE_SERVICE": SERVICE,
            "HTTP_PORT": str(port),
            "TOKEN_ISSUER": "http://localhost:4025",
            "CURSOR_SECRET": "b1Vw0q9ZtYx4LrS7",
            **environment,
        },
    )
    sample = Sample(process, port)
    try:
        yield sample
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await sample._reading


def urls(cell: "Cell") -> dict[str, str]:
    return {
        "DATABASE_URL": cell.database_url(SERVICE),
        "EVENT_STORE_URL": cell.store_url(SERVICE),
        "AMQP_URL": cell.amqp_url(SERVICE),
    }


NOWHERE = {
    "DATABASE_URL": "postgresql://x:Zq8vT2@127.0.0.1:1/x",
    "EVENT_STORE_URL": "postgresql://x:Zq8vT2@127.0.0.1:1/x",
    "AMQP_URL": "amqp://x:Zq8vT2@127.0.0.1:1/",
}


async def test_unusable_settings_do_not_start() -> None:
    async with running(**NOWHERE | {"CURSOR_SECRET": "changeme"}) as sample:
        assert await sample.exit_code() == 78


async def test_waits_for_a_database_that_is_not_there_and_can_be_told_to_stop() -> None:
    async with running(**NOWHERE) as sample:
        await sample.until(lambda: len(sample.logged("paused")) >= 2)
        assert sample.process.returncode is None
        sample.process.send_signal(signal.SIGTERM)
        assert await sample.exit_code() == 0
    assert "Zq8vT2" not in json.dumps(sample.lines)


@pytest.mark.integration
async def test_starts_when_the_database_comes_up_and_survives_its_absence(cell: "Cell") -> None:
    real = urls(cell)
    target = urlsplit(real["DATABASE_URL"])
    port = free_port()
    through = {
        name: value.replace(f":{target.port}/", f":{port}/") if name != "AMQP_URL" else value
        for name, value in real.items()
    }
    async with running(**through) as sample:
        await sample.until(lambda: sample.logged("paused"))
        async with forwarding(port, str(target.hostname), int(target.port or 5432)):
            await sample.until(sample.is_ready)
        status, problem = await sample.ready()
        assert (status, problem["code"]) == (503, "not_ready")
        assert "the database does not answer" in problem["reasons"]
        async with forwarding(port, str(target.hostname), int(target.port or 5432)):
            await sample.until(sample.is_ready)
        sample.process.send_signal(signal.SIGTERM)
        assert await sample.exit_code() == 0


@pytest.mark.integration
async def test_sigterm_finishes_what_has_begun(cell: "Cell") -> None:
    async with running(**urls(cell)) as sample, aiohttp.ClientSession() as http:
        await sample.until(sample.is_ready)
        slow = asyncio.create_task(http.get(f"{sample.url}/slow"))
        await sample.until(lambda: sample.logged("slow_began"))
        sample.process.send_signal(signal.SIGTERM)
        response = await slow
        assert (response.status, await response.text()) == (200, "finished")
        assert await sample.exit_code() == 0
    order = [line["event"] for line in sample.lines]
    assert order.index("service_stopping") < order.index("goodbye") < order.index("service_stopped")
    request = sample.logged("request")[-1]
    assert (request["route"], request["status"], request["service"]) == ("/slow", 200, SERVICE)
    assert len(request["trace_id"]) == 32
    assert request["correlation_id"]


@pytest.mark.integration
async def test_a_crashed_task_ends_the_service_loudly(cell: "Cell") -> None:
    async with running(**urls(cell)) as sample, aiohttp.ClientSession() as http:
        await sample.until(sample.is_ready)
        async with http.post(f"{sample.url}/crash") as response:
            assert response.status == 201
        assert await sample.exit_code() == 1
    failure = sample.logged("background_task_failed")[0]
    assert failure["task"] == "doomed"
    assert "the task broke" in failure["exception"]


@pytest.mark.integration
async def test_not_ready_without_the_broker(cell: "Cell") -> None:
    async with running(**urls(cell) | {"AMQP_URL": NOWHERE["AMQP_URL"]}) as sample:
        await sample.until(lambda: sample.logged("service_started"))

        async def reasons() -> bool:
            return (await sample.ready())[1].get("reasons") == [f"{SERVICE}.projections is not connected to the broker"]

        await sample.until(reasons)


@pytest.mark.integration
async def test_verification_keys(cell: "Cell") -> None:
    """Published keys verify until they are retired; doing it again changes nothing."""
    jwk = {"kty": "EC", "crv": "P-256", "x": "eA", "y": "eQ"}
    published = [identity.SigningKeyPublished(kid=k, public_jwk=jwk, sealed_private_key="-") for k in ("k1", "k2")]
    retired = identity.SigningKeyRetired(kid="k1")
    projection = VerificationKeys()
    db = await asyncpg.connect(cell.database_url(SERVICE))
    pool = await asyncpg.create_pool(cell.database_url(SERVICE), min_size=1, max_size=1)
    try:
        for _ in range(2):
            await db.execute(projection.ddl)
            await projection.apply(db, [recorded(event) for event in published])
        assert await active_keys(pool) == {"k1": jwk, "k2": jwk}
        await projection.apply(db, [recorded(retired)])
        await projection.apply(db, [recorded(published[0])])
        assert await active_keys(pool) == {"k2": jwk}
    finally:
        await pool.close()
        await db.close()


@contextlib.asynccontextmanager
async def forwarding(port: int, host: str, target: int) -> AsyncIterator[None]:
    """A TCP forwarder from `port`; at its end all connections break, as when the server dies."""
    writers: set[asyncio.StreamWriter] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection(host, target)
        writers.update({writer, upstream_writer})
        await asyncio.gather(copy(reader, upstream_writer), copy(upstream_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@pytest.mark.integration
async def test_tables_of_an_older_checkout_are_built_anew_before_it_is_ready(cell: "Cell") -> None:
    """And while a replica of another version serves, whose statements find their own tables."""
    database = await asyncpg.connect(cell.database_url(SERVICE))
    # As it was before keys could be retired, and before any version wrote its shape down.
    await database.execute(
        "CREATE TABLE consumed (consumer text PRIMARY KEY, position bigint NOT NULL DEFAULT 0, epoch uuid);"
        f"INSERT INTO consumed VALUES ('{SERVICE}.projections', 0);"
        "CREATE TABLE verification_key (kid text PRIMARY KEY, jwk jsonb NOT NULL);"
        "INSERT INTO verification_key VALUES ('of another history', '{}')"
    )
    async with running(**urls(cell)) as sample:
        await sample.until(sample.is_ready)
        (told,) = sample.logged("read_models.succeeded")
        assert told["built"] == ["verification_keys", "revoked_sessions"]
        assert await database.fetchval("SELECT count(*) FROM verification_key WHERE retired_at IS NULL") == 0
        shape = await database.fetchval("SELECT shape FROM consumed")
        paths = await database.fetch(
            "SELECT schema FROM generation WHERE state = 'previous' AND to_regnamespace(schema) IS NOT NULL"
        )
        assert [row["schema"] != f"shape_{shape}" for row in paths] == [True]
    await database.close()
