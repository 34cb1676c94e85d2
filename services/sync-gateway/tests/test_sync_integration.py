"""`/ws/sync` and `/api/sync/events` over the real log: who gets what, nothing missed, nothing twice."""

import asyncio
import random
import socket
import time
from uuid import uuid4

import pytest
import websockets.asyncio.client as ws
from events.contracts import identity
from events.envelope import new_id
from events.store import EventStore, StreamAppend
from gateway_harness import Gateway, Listener, amount, append
from websockets.exceptions import InvalidStatus

pytestmark = pytest.mark.integration


async def test_an_appended_event_arrives(gateway: Gateway, ledger_store: EventStore) -> None:
    user_id, session_id = uuid4(), uuid4()
    async with gateway.connect(gateway.token(user_id, session_id)) as listener:
        assert listener.socket.subprotocol == "bearer"
        hello = await listener.receive()
        assert (hello["type"], hello["session_id"], hello["heartbeat_s"]) == ("hello", str(session_id), 20)
        assert await listener.subscribe("ledger.#") == {"type": "subscribed", "topics": ["ledger.#"]}
        await append(ledger_store, user_id, 7)
        frame = await listener.receive()
        assert amount(frame) == 7
        event = frame["event"]
        assert event["specversion"] == "1.0"
        assert event["type"] == "ledger.transfer.completed"
        assert event["subject"] == str(user_id)
        assert event["time"].endswith("Z")


async def test_only_the_caller_s_events_and_topics_arrive(gateway: Gateway, ledger_store: EventStore) -> None:
    mine, other = uuid4(), uuid4()
    async with (
        gateway.connect(gateway.token(mine)) as all_of_it,
        gateway.connect(gateway.token(mine)) as security,
        gateway.connect(gateway.token(mine)) as silent,
    ):
        for listener in (all_of_it, security, silent):
            await listener.receive()
        await all_of_it.subscribe("#")
        await security.subscribe("identity.#", "customer.*.changed")
        # Another customer's stream as a topic is no topic at all, or just matches nothing.
        assert (await security.subscribe(f"ledger-{other}"))["type"] == "error"
        for number in range(1, 21):
            await append(ledger_store, other, 1000 + number)
            await append(ledger_store, mine, number)
        assert [amount(await all_of_it.receive()) for _ in range(20)] == list(range(1, 21))
        for listener in (security, silent):
            with pytest.raises(TimeoutError):
                await listener.receive(timeout_s=0.3)


async def test_resuming_misses_nothing_and_repeats_nothing(gateway: Gateway, ledger_store: EventStore) -> None:
    """A client that drops its connection again and again while events keep coming, 600 in all."""
    user_id, count = uuid4(), 600
    token = gateway.token(user_id)
    seed = random.randrange(2**32)
    chance = random.Random(seed)

    async def keep_appending() -> None:
        number = 1
        while number <= count:
            batch = range(number, min(number + chance.randint(1, 5), count + 1))
            await append(ledger_store, user_id, *batch)
            await append(ledger_store, uuid4(), -1)
            number = batch.stop

    received: list[int] = []
    async with gateway.connect(token) as listener:
        cursor = (await listener.receive())["resume"]
    appending = asyncio.create_task(keep_appending())
    connections = 0
    deadline = time.monotonic() + 60
    while len(received) < count:
        assert time.monotonic() < deadline, f"{len(received)} of {count} after 60 s, seed {seed}"
        connections += 1
        # max_queue: a client that has stopped reading would wait ten seconds for the server's close frame.
        async with gateway.connect(token, max_queue=None) as listener:
            await listener.receive()
            assert (await listener.subscribe("ledger.#", resume=cursor))["type"] == "subscribed"
            for _ in range(chance.randint(1, 60)):
                if len(received) == count:
                    break
                frame = await listener.receive()
                if frame["type"] == "bye":
                    assert frame["code"] == 4008, frame  # too slow, on a busy machine: told to resume
                    break
                received.append(amount(frame))
                cursor = frame["cursor"]
            if chance.random() < 0.5:
                listener.socket.transport.abort()
    await appending
    assert received == list(range(1, count + 1)), f"seed {seed}, {connections} connections"
    assert connections > 5


async def test_a_long_absence_is_replayed_page_by_page(gateway: Gateway, ledger_store: EventStore) -> None:
    """More missed events than a client's queue holds: the replay waits for the reader."""
    user_id = uuid4()
    async with gateway.connect(gateway.token(user_id)) as listener:
        cursor = (await listener.receive())["resume"]
    await append(ledger_store, user_id, *range(1, 1001))
    async with gateway.connect(gateway.token(user_id)) as listener:
        await listener.receive()
        await listener.subscribe("ledger.#", resume=cursor)
        for number in range(1, 1001):
            assert amount(await listener.receive()) == number
        await append(ledger_store, user_id, 1001)
        assert amount(await listener.receive()) == 1001


async def test_foreign_forged_and_expired_cursors_get_a_resync(gateway: Gateway, ledger_store: EventStore) -> None:
    user_id, other = uuid4(), uuid4()
    async with gateway.connect(gateway.token(other)) as listener:
        foreign = (await listener.receive())["resume"]
    async with gateway.connect(gateway.token(user_id)) as listener:
        cursor = (await listener.receive())["resume"]
        for bad in (foreign, cursor[:-2] + "zz", "1", "A" * 40, "\0"):
            assert (await listener.subscribe("#", resume=bad))["type"] == "subscribed"
            assert await listener.receive() == {"type": "resync", "reason": "unknown_cursor"}
        await append(ledger_store, user_id, 1)
        assert amount(await listener.receive()) == 1, "live goes on"


async def test_a_slow_reader_is_told_and_can_resume(gateway: Gateway, ledger_store: EventStore) -> None:
    user_id = uuid4()
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    small.connect(("127.0.0.1", int(gateway.http.rsplit(":", 1)[1])))
    # More than the kernel's buffers and the client's queue hold together.
    count, memo = 800, "x" * 16_000
    async with gateway.connect(gateway.token(user_id), sock=small, max_queue=1, ping_interval=None) as slow:
        cursor = (await slow.receive())["resume"]
        assert (await slow.subscribe("ledger.#"))["type"] == "subscribed"
        async with gateway.connect(gateway.token(user_id)) as quick:
            await quick.receive()
            await quick.subscribe("ledger.#")
            for number in range(1, count + 1, 50):
                await append(ledger_store, user_id, *range(number, number + 50), memo=memo)
                for expected in range(number, number + 50):
                    assert amount(await quick.receive()) == expected, "a slow neighbour costs nobody else"
        code, frames = await slow.closed()
    assert code == 4008
    assert frames[-1] == {"type": "bye", "code": 4008, "reason": "too_slow"}
    got = [amount(frame) for frame in frames[:-1]]
    assert got == list(range(1, len(got) + 1))
    assert len(got) < count
    async with gateway.connect(gateway.token(user_id), max_size=None) as again:
        await again.receive()
        await again.subscribe("ledger.#", resume=frames[-2]["cursor"] if got else cursor)
        for number in range(len(got) + 1, count + 1):
            assert amount(await again.receive()) == number


async def test_handshakes_without_a_good_token_are_closed_with_4401(gateway: Gateway) -> None:
    good = gateway.token(uuid4())
    now = int(time.time())
    attempts: list[tuple[str, list[str] | None]] = [
        ("", None),
        ("", ["bearer"]),
        ("", ["bearer", "nonsense"]),
        ("", ["bearer", gateway.token(uuid4(), exp=now - 60, iat=now - 120, nbf=now - 120)]),
        ("", ["bearer", gateway.token(uuid4(), aud="elsewhere")]),
        ("", ["bearer", good, "more"]),
        ("", [good, "bearer"]),
        (f"?token={good}", None),
        (f"?token={good}", ["bearer", good]),
        (f"?access_token={good}", ["bearer", good]),
    ]
    for query, protocols in attempts:
        async with ws.connect(gateway.ws + query, subprotocols=protocols) as client:  # type: ignore[arg-type]
            code, frames = await Listener(client).closed()
            assert code == 4401, (query, protocols)
            assert [frame["type"] for frame in frames] == ["bye"]


async def test_pages_of_other_origins_are_refused(gateway: Gateway) -> None:
    token = gateway.token(uuid4())
    own = gateway.http
    for origin in ("http://evil.example", "null", own + ".evil.example", "file://", own.replace("http", "ftp")):
        with pytest.raises(InvalidStatus) as refused:
            async with gateway.connect(token, origin=origin):
                pass
        assert refused.value.response.status_code == 403, origin
    async with gateway.connect(token, origin=own) as listener:
        assert (await listener.receive())["type"] == "hello"


async def test_the_token_s_end_is_the_connection_s_end_unless_refreshed(gateway: Gateway) -> None:
    user_id, now = uuid4(), int(time.time())
    async with (
        gateway.connect(gateway.token(user_id, exp=now + 3)) as left,
        gateway.connect(gateway.token(user_id, exp=now + 3)) as refreshed,
    ):
        await refreshed.receive()
        await refreshed.send(type="refresh", token=gateway.token(uuid4()))
        assert (await refreshed.receive())["code"] == "another_user"
        await refreshed.send(type="refresh", token="nonsense")
        assert (await refreshed.receive())["code"] == "invalid_token"
        await refreshed.send(type="refresh", token=gateway.token(user_id))
        assert (await refreshed.receive())["type"] == "refreshed"
        code, frames = await left.closed()
        assert (code, frames[-1]) == (4401, {"type": "bye", "code": 4401, "reason": "token_expired"})
        assert 2.5 < time.time() - now < 6
        await refreshed.send(type="ping")
        assert await refreshed.receive() == {"type": "pong"}


async def test_a_revoked_session_is_closed(gateway: Gateway) -> None:
    user_id, revoked, kept = uuid4(), uuid4(), uuid4()
    async with (
        gateway.connect(gateway.token(user_id, revoked)) as gone,
        gateway.connect(gateway.token(user_id, kept)) as stays,
        gateway.store("identity") as store,
    ):
        await gone.receive()
        await stays.receive()
        event = identity.SessionRevoked(session_id=revoked, user_id=user_id, reason="logout")
        await store.append([StreamAppend(f"session-{revoked}", (event,))], event_id=new_id(), subject=user_id)
        code, frames = await gone.closed()
        assert (code, frames[-1]["reason"]) == (4401, "session_revoked")
        await stays.send(type="ping")
        assert await stays.receive() == {"type": "pong"}


async def test_bad_frames_are_answered_and_floods_are_cut_off(gateway: Gateway) -> None:
    token = gateway.token(uuid4())
    async with gateway.connect(token) as listener:
        await listener.receive()
        for bad, code in (
            ("{", "invalid_frame"),
            ("[]", "invalid_frame"),
            ('{"type":"unsubscribe"}', "invalid_frame"),
            ('{"type":"subscribe"}', "invalid_topic"),
            ('{"type":"subscribe","topics":[]}', "invalid_topic"),
            ('{"type":"subscribe","topics":["a..b"]}', "invalid_topic"),
            ('{"type":"subscribe","topics":["#",1]}', "invalid_frame"),
            ("[" * 5000, "invalid_frame"),
        ):
            await listener.socket.send(bad)
            answer = await listener.receive()
            assert (answer["type"], answer["code"]) == ("error", code), bad
    async with gateway.connect(token) as listener:
        for _ in range(200):
            await listener.send(type="ping")
        close_code, frames = await listener.closed()
        assert (close_code, frames[-1]["reason"]) == (1008, "rate_limited")
    async with gateway.connect(token) as listener:
        await listener.send(type="ping", padding="x" * 17_000)
        assert (await listener.closed())[0] == 1009
    async with gateway.connect(token) as listener:
        await listener.socket.send(b"\x00")
        assert (await listener.closed())[0] == 1003


async def test_events_are_listed_page_by_page_for_their_owner_only(gateway: Gateway, ledger_store: EventStore) -> None:
    user_id, other = uuid4(), uuid4()
    token = gateway.token(user_id)
    await append(ledger_store, other, *range(500, 510))
    await append(ledger_store, user_id, *range(1, 26))
    path, seen = "/api/sync/events?limit=10", []
    deadline = time.monotonic() + 10
    while len((await gateway.get("/api/sync/events?limit=200", token)).body["items"]) < 25:
        assert time.monotonic() < deadline, "the read model does not move"
    while True:
        page = (await gateway.get(path, token)).body
        seen += page["items"]
        if page["next_cursor"] is None:
            break
        path = f"/api/sync/events?limit=10&cursor={page['next_cursor']}"
    assert [event["data"]["amount_minor"] for event in seen] == list(range(1, 26))
    after = await gateway.get(f"/api/sync/events?after={seen[9]['position']}&types=ledger.%23", token)
    assert [event["data"]["amount_minor"] for event in after.body["items"]] == list(range(11, 26))
    assert (await gateway.get("/api/sync/events?types=identity.%23", token)).body["items"] == []


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("types=a..b", "invalid_topic"),
        ("cursor=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "invalid_cursor"),
        ("limit=0", "invalid_request"),
        ("limit=201", "invalid_request"),
        ("after=-1", "invalid_request"),
        ("after=x", "invalid_request"),
        (f"after={2**63}", "invalid_request"),
    ],
)
async def test_bad_queries_are_refused(gateway: Gateway, query: str, code: str) -> None:
    answer = await gateway.get(f"/api/sync/events?{query}", gateway.token(uuid4()))
    assert (answer.status, answer.body["code"]) == (400, code)
