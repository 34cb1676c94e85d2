"""The local stack itself: recovery, isolation, least privilege, and leaving nothing behind."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import aio_pika
import asyncpg
import ports
import pytest
from aiormq.exceptions import ChannelAccessRefused
from pamqp.common import FieldValue
from processes import belonging_to
from provision import Cell, ProvisionFailure
from rabbitmq import RELAY, SERVICES
from stack import Stack

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
INFRASTRUCTURE = ("postgres", "rabbitmq", "epmd")


# --- recovery --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def durable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("durable"), disposable=True, applications=False) as started:
        yield started


@pytest.fixture(scope="module")
def kept(durable: Stack) -> str:
    """The name of a table and of a queue that hold something, once both servers have it on their disks."""

    async def fill() -> None:
        connection = await asyncpg.connect(durable.cell.database_url("wealth"))
        await connection.execute('CREATE TABLE "wealth.kept" AS SELECT 42 AS answer')
        await connection.close()
        async with await aio_pika.connect(durable.cell.amqp_url()) as broker:
            channel = await broker.channel()
            await channel.declare_queue("wealth.kept", durable=True, arguments={"x-queue-type": "quorum"})
            message = aio_pika.Message(b"kept", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, routing_key="wealth.kept")
        await asyncio.sleep(3)  # RabbitMQ keeps the registration of a new quorum queue in memory for a moment

    asyncio.run(fill())
    return "wealth.kept"


@pytest.mark.chaos
@pytest.mark.parametrize("names", [(name,) for name in INFRASTRUCTURE] + [INFRASTRUCTURE], ids="+".join)
async def test_what_is_killed_comes_back_with_its_data(durable: Stack, kept: str, names: tuple[str, ...]) -> None:
    before = {name: durable.kill(name, signal.SIGKILL) for name in names}
    durable.wait_ready(timeout_s=60)

    assert all(durable.pid(name) != pid for name, pid in before.items())
    connection = await asyncpg.connect(durable.cell.database_url("wealth"))
    assert await connection.fetchval(f'SELECT answer FROM "{kept}"') == 42
    await connection.close()
    async with await aio_pika.connect(durable.cell.amqp_url("wealth")) as broker:
        queue = await (await broker.channel()).get_queue(kept)
        message = await queue.get(timeout=10)
        assert message is not None
        assert message.body == b"kept"
        await message.nack(requeue=True)


@pytest.mark.chaos
async def test_a_queue_declared_just_before_the_broker_dies_works_afterwards(durable: Stack) -> None:
    quorum: dict[str, FieldValue] = {"x-queue-type": "quorum"}
    async with await aio_pika.connect(durable.cell.amqp_url()) as broker:
        await (await broker.channel()).declare_queue("search.newborn", durable=True, arguments=quorum)
    durable.kill("rabbitmq", signal.SIGKILL)
    durable.wait_ready(timeout_s=60)
    async with await aio_pika.connect(durable.cell.amqp_url()) as broker:
        channel = await broker.channel()
        queue = await channel.declare_queue("search.newborn", durable=True, arguments=quorum)
        await channel.default_exchange.publish(aio_pika.Message(b"first"), "search.newborn", timeout=20)
        message = await queue.get(timeout=20)
        assert message is not None
        assert message.body == b"first"


def test_a_killed_supervisor_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(ROOT / 'deploy/local')!r})\n"
        "from pathlib import Path\nfrom stack import Stack\n"
        f"stack = Stack(Path({str(tmp_path)!r}), disposable=True, applications=False)\n"
        "stack.start()\nprint(stack.data, flush=True)\ntime.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    data = owner.stdout.readline().strip()
    running = {process.name() for process in belonging_to(data)}
    assert {"postgres", "beam.smp", "epmd"} <= running

    owner.kill()
    owner.wait()

    deadline = time.monotonic() + 20
    while (left := belonging_to(data)) or Path(data).exists():
        assert time.monotonic() < deadline, f"still there: {left}, {data}"
        time.sleep(0.1)


# --- isolation -------------------------------------------------------------------------------------


async def test_two_stacks_side_by_side(infrastructure: Stack, make_stack: Callable[..., Stack]) -> None:
    other = make_stack(applications=False)
    for stack in (infrastructure, other):
        connection = await asyncpg.connect(stack.cell.admin_url())
        await connection.execute("CREATE TABLE side_by_side AS SELECT 1")
        await connection.close()
        async with await aio_pika.connect(stack.cell.amqp_url("search")) as broker:
            await (await broker.channel()).declare_queue("search.side_by_side")
    assert infrastructure.data != other.data
    other.stop()
    assert belonging_to(str(other.data)) == []
    assert not other.data.exists()
    infrastructure.wait_ready(timeout_s=5)


async def test_cells_are_apart(infrastructure: Stack, cell: Cell) -> None:
    other = infrastructure.fresh_cell()
    try:
        assert other.vhost != cell.vhost
        for fresh in (cell, other):
            connection = await asyncpg.connect(fresh.database_url("wealth"))
            await connection.execute("CREATE TABLE only_once (id int)")
            await connection.close()
            async with await aio_pika.connect(fresh.amqp_url("wealth")) as broker:
                await (await broker.channel()).declare_queue("wealth.only_once", durable=True)
    finally:
        other.drop()
    vhosts = [vhost["name"] for vhost in cell.management.call("GET", "/vhosts")]
    assert cell.vhost in vhosts
    assert other.vhost not in vhosts


async def test_given_servers_are_used_and_left_clean(
    infrastructure: Stack, make_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", infrastructure.cell.admin_url("wealth"))
    monkeypatch.setenv("AMQP_URL", infrastructure.cell.amqp_url())
    monkeypatch.setenv("RABBITMQ_MANAGEMENT_URL", infrastructure.cell.management.url)
    guest = make_stack(applications=False)
    assert guest.names() == []
    connection = await asyncpg.connect(guest.cell.store_url("ledger_transfer"))
    assert await connection.fetchval("SELECT position FROM store.head()") == 0
    await connection.close()
    async with await aio_pika.connect(guest.cell.amqp_url("ledger_transfer")) as broker:
        await (await broker.channel()).get_exchange("sangam.log")
    namespace = guest.cell.vhost.removesuffix("sangam")
    assert namespace

    guest.stop()

    connection = await asyncpg.connect(infrastructure.cell.admin_url())
    for catalog, name in (("pg_database", "datname"), ("pg_roles", "rolname")):
        left = await connection.fetch(f"SELECT {name} FROM {catalog} WHERE starts_with({name}, $1)", namespace)
        assert left == []
    await connection.close()
    management = infrastructure.cell.management
    names = [entry["name"] for kind in ("/vhosts", "/users") for entry in management.call("GET", kind)]
    assert not [name for name in names if name.startswith(namespace)]


def test_a_given_role_without_rights_is_refused(
    infrastructure: Stack, make_stack: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", infrastructure.cell.database_url("wealth"))
    monkeypatch.setenv("AMQP_URL", infrastructure.cell.amqp_url())
    monkeypatch.setenv("RABBITMQ_MANAGEMENT_URL", infrastructure.cell.management.url)
    with pytest.raises(ProvisionFailure, match="CREATEROLE CREATEDB"):
        make_stack(applications=False)


# --- least privilege -------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [*SERVICES, RELAY])
async def test_a_role_connects_to_its_own_database_and_the_store_only(cell: Cell, role: str) -> None:
    store = await asyncpg.connect(cell.store_url(role))
    for table in ("log", "events", "writers"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await store.fetch(f"SELECT * FROM store.{table}")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await store.execute("CREATE TABLE public.mine (id int)")
    await store.close()
    for database in SERVICES:
        url = cell.foreign_url(role, database)
        if database == role:
            own = await asyncpg.connect(url)
            await own.execute("CREATE TABLE mine (id int); CREATE SCHEMA rebuilt")
            await own.close()
        else:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await asyncpg.connect(url)


async def test_a_service_publishes_nothing_on_the_log(cell: Cell) -> None:
    for exchange_name in ("sangam.log", "sangam.events", "sangam.control"):
        async with await aio_pika.connect(cell.amqp_url("wealth")) as broker:
            exchange = await (await broker.channel()).get_exchange(exchange_name)
            with pytest.raises(ChannelAccessRefused):
                await exchange.publish(aio_pika.Message(b"forged"), routing_key="")
    async with await aio_pika.connect(cell.amqp_url("identity")) as broker:
        exchange = await (await broker.channel()).get_exchange("sangam.control")
        await exchange.publish(aio_pika.Message(b"revoked"), routing_key="")


async def test_a_service_binds_its_own_queues_only(cell: Cell) -> None:
    dead_lettering: dict[str, FieldValue] = {"x-queue-type": "quorum", "x-dead-letter-exchange": "sangam.dead"}
    async with await aio_pika.connect(cell.amqp_url("wealth")) as broker:
        channel = await broker.channel()
        queue = await channel.declare_queue("wealth.projections", durable=True, arguments=dead_lettering)
        await queue.bind("sangam.log")
        replica = await channel.declare_queue("wealth.replica.1", exclusive=True)
        await replica.bind("sangam.control")
    async with await aio_pika.connect(cell.amqp_url("search")) as broker:
        with pytest.raises(ChannelAccessRefused):
            await (await broker.channel()).declare_queue("wealth.intruder")
        foreign = await (await broker.channel()).get_queue("wealth.projections")
        with pytest.raises(ChannelAccessRefused):
            await foreign.get(fail=False)


async def test_the_relay_publishes_and_the_unrouted_are_kept(cell: Cell) -> None:
    async with await aio_pika.connect(cell.amqp_url(RELAY)) as broker:
        exchange = await (await broker.channel()).get_exchange("sangam.log")
        await exchange.publish(aio_pika.Message(b"nobody listens yet"), routing_key="")
    async with await aio_pika.connect(cell.amqp_url()) as broker:
        queue = await (await broker.channel()).get_queue("sangam.unrouted")
        message = await queue.get(timeout=5)
        assert message is not None
        assert message.body == b"nobody listens yet"


def test_guest_is_gone(infrastructure: Stack) -> None:
    users = [user["name"] for user in infrastructure.cell.management.call("GET", "/users")]
    assert "guest" not in users


# --- the whole product -----------------------------------------------------------------------------


def test_no_secret_is_visible_in_the_process_list(sangam: Stack) -> None:
    credentials = sangam.credentials
    secrets = [
        *credentials.passwords.values(),
        *credentials.cursor_secrets.values(),
        *credentials.feed_secrets.values(),
        credentials.identity_key,
        credentials.ops_client_secret,
        credentials.demo_password,
    ]
    processes = belonging_to(str(sangam.data))
    assert len(processes) > 12
    for process in processes:
        arguments = " ".join(process.cmdline())
        assert not [secret for secret in secrets if secret in arguments], process.name()


def test_up_and_down_in_a_clone_that_others_cannot_enter(tmp_path: Path) -> None:
    clone = tmp_path / "private" / "clone"
    clone.mkdir(parents=True)
    clone.parent.chmod(0o700)
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    ).stdout.decode()
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    port = ports.assign(tmp_path / "port.json", {"origin": None})["origin"]

    def stack(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(clone / "deploy/local/stack.py"), command],
            env={**os.environ, "SANGAM_PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=180,
        )

    try:
        first = stack("up")
        assert first.returncode == 0, first.stdout + first.stderr
        data = str((clone / ".run" / "data").readlink())
        local_env = clone / ".run" / "local.env"
        assert local_env.stat().st_mode & 0o777 == 0o600
        assert f"ORIGIN_URL=http://localhost:{port}\n" in local_env.read_text()
        with urllib.request.urlopen(f"http://localhost:{port}/.well-known/jwks.json", timeout=5) as response:
            assert response.status == 200
        again = stack("up")
        assert again.returncode == 0
        assert "running already" in again.stdout
        status = stack("status")
        assert status.returncode == 0, status.stdout + status.stderr
        assert all(f"{service}." in status.stdout for service in SERVICES), status.stdout

        stopped = stack("down")
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        assert "killing what was left" not in stopped.stderr
        assert belonging_to(data) == []
    finally:
        stack("clean")
    assert not Path(data).exists()
