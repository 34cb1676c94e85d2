"""The demo's own parts: what it waits for, and how it fails. The story itself runs against the stack."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from simulators.harness import Platform, Receiver, eventually, free_port
from simulators.http_client import DemoFailed, EventWatch, JsonClient, NotNow, until
from websockets.asyncio.server import ServerConnection, serve

from simulators import demo, scenario

ENV = "# the stack\nORIGIN_URL=http://x\nBFC_URL=http://b\nVYOMO_URL='http://v'\nDEMO_EMAIL=a@b.in\nDEMO_PASSWORD=p=q\n"


def test_env_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "local.env"
    path.write_text(ENV)
    settings = demo.read_env(path)
    assert (settings["VYOMO_URL"], settings["DEMO_PASSWORD"]) == ("http://v", "p=q")


def test_env_file_without_a_needed_setting_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "local.env"
    path.write_text(ENV.replace("DEMO_EMAIL", "# DEMO_EMAIL"))
    with pytest.raises(DemoFailed, match="lacks DEMO_EMAIL"):
        demo.read_env(path)


def test_without_a_stack_it_says_so_and_exits_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--env", str(tmp_path / "none.env")]) == 1
    assert "make up" in capsys.readouterr().err


def test_holdings_are_complete_or_none() -> None:
    who = scenario.customer(1)
    savings = {"platform_account_id": "SB-1001"}
    wallet = {"platform_account_id": "TW-2001"}
    assert demo.holdings(who, [savings]) is None
    both = demo.holdings(who, [wallet, savings])
    assert both is not None
    assert (both.savings, both.wallet) == (savings, wallet)


@pytest.fixture
async def client() -> AsyncIterator[JsonClient]:
    """Speaks to a server that answers what the path says: /<status>."""

    async def answer(request: web.Request) -> web.Response:
        status = int(request.match_info["status"])
        body = {"code": "some_code", "detail": "some detail"} if status >= 400 else {"ok": True}
        return web.json_response(body, status=status, content_type="application/problem+json")

    async def text(_: web.Request) -> web.Response:
        return web.Response(text="<html>")

    app = web.Application()
    app.router.add_get(r"/{status:\d+}", answer)
    app.router.add_get("/text", text)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with aiohttp.ClientSession() as session:
        yield JsonClient(session, "Sangam", f"http://127.0.0.1:{port}/")
    await runner.cleanup()


async def test_an_expected_answer_is_returned(client: JsonClient) -> None:
    assert (await client.call("GET", "/200")).body == {"ok": True}
    assert (await client.call("GET", "/409", expect=(409,))).status == 409


@pytest.mark.parametrize(("status", "kind"), [(400, DemoFailed), (500, DemoFailed), (429, NotNow), (503, NotNow)])
async def test_an_unexpected_answer_is_an_error_with_its_reason(
    client: JsonClient, status: int, kind: type[DemoFailed]
) -> None:
    with pytest.raises(DemoFailed, match=f"Sangam answered {status} some_code: some detail") as failed:
        await client.call("GET", f"/{status}")
    assert failed.type is kind


async def test_an_answer_that_is_no_json_is_an_error(client: JsonClient) -> None:
    with pytest.raises(DemoFailed, match="no JSON"):
        await client.call("GET", "/text")


async def test_nobody_there_is_an_error() -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(NotNow, match="BFC did not answer"):
            await JsonClient(session, "BFC", f"http://127.0.0.1:{free_port()}").call("GET", "/200")


async def test_until_fetches_again_while_it_is_not_there_yet() -> None:
    answers: list[int | Exception] = [NotNow("starting"), 1, 2, 3]

    async def fetch() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await until("two", fetch, lambda value: value == 2) == 2
    assert answers == [3]


async def test_until_gives_up_and_says_what_came_last() -> None:
    async def fetch() -> str:
        return "seven"

    with pytest.raises(DemoFailed, match="for the salary, in vain; last seen: seven"):
        await until("the salary", fetch, lambda _: False, timeout_s=0.1)


async def test_until_does_not_repeat_what_cannot_become_right() -> None:
    async def fetch() -> str:
        raise DemoFailed("422")

    with pytest.raises(DemoFailed, match="422"):
        await until("anything", fetch, lambda _: True)


async def test_feed_trouble_names_what_holds_up_a_platform(platform: Platform, receiver: Receiver) -> None:
    async with aiohttp.ClientSession() as session:
        bfc = JsonClient(session, "BFC", platform.url)
        assert await demo.feed_trouble(bfc) is None
        await platform.customer()
        receiver.reject.add("bad-1")
        await platform.emit(id="bad-1")

        async def rejected() -> bool:
            return await demo.feed_trouble(bfc) == "BFC's feed: 1 items rejected"

        await eventually(rejected)
        await platform.call("POST", "/control/pause")
        await platform.emit()
        assert await demo.feed_trouble(bfc) == "BFC's feed: 1 items pending, 1 items rejected, fault paused"
        await platform.stop()
        assert "did not answer" in str(await demo.feed_trouble(bfc))


class Gateway:
    """A WebSocket server that speaks `/ws/sync` and sends what it is given."""

    def __init__(self) -> None:
        self.port = free_port()
        self.to_send: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.subscribed: list[dict[str, Any]] = []
        self.offered: list[str] = []

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/sync"

    async def handle(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        self.offered.append(socket.request.headers["Sec-WebSocket-Protocol"])
        await socket.send(msgspec.json.encode({"type": "hello", "session_id": "s"}), text=True)
        self.subscribed.append(msgspec.json.decode(await socket.recv()))
        await socket.send(msgspec.json.encode({"type": "subscribed", "topics": ["ledger.#"]}), text=True)
        while (frame := await self.to_send.get()) is not None:
            await socket.send(msgspec.json.encode(frame), text=True)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made = Gateway()
    async with serve(made.handle, "127.0.0.1", made.port, subprotocols=["bearer"]):  # type: ignore[list-item]
        yield made
        made.to_send.put_nowait(None)


def _event(number: int) -> dict[str, Any]:
    return {"type": "event", "cursor": str(number), "event": {"type": "ledger.x", "number": number}}


async def test_watch_subscribes_with_the_token_and_finds_past_and_coming_events(gateway: Gateway) -> None:
    async with EventWatch(gateway.url, "to.ke.n", ["ledger.#"]) as watch:
        for frame in (_event(1), {"type": "resync", "reason": "x"}, _event(2)):
            gateway.to_send.put_nowait(frame)
        second = await watch.event("two", lambda event: event["number"] == 2)
        first = await watch.event("one", lambda event: event["number"] == 1)
        waiting = asyncio.create_task(watch.event("three", lambda event: event["number"] == 3))
        gateway.to_send.put_nowait(_event(3))
        third = await waiting
    assert first.arrived_at <= second.arrived_at <= third.arrived_at
    assert gateway.offered == ["bearer, to.ke.n"]
    assert gateway.subscribed == [{"type": "subscribe", "topics": ["ledger.#"]}]


async def test_watch_says_what_it_saw_instead(gateway: Gateway) -> None:
    async with EventWatch(gateway.url, "t", ["ledger.#"]) as watch:
        gateway.to_send.put_nowait(_event(1))
        with pytest.raises(DemoFailed, match=r"no frame for nine: not within 1 s; seen: ledger\.x"):
            await watch.event("nine", lambda event: event["number"] == 9, timeout_s=1)


async def test_watch_ends_when_the_connection_does(gateway: Gateway) -> None:
    async with EventWatch(gateway.url, "t", ["ledger.#"]) as watch:
        gateway.to_send.put_nowait(None)
        with pytest.raises(DemoFailed, match="the WebSocket broke"):
            await watch.event("anything", lambda _: True)


async def test_watch_without_a_server_is_a_clear_error() -> None:
    with pytest.raises(DemoFailed, match=r"WebSocket ws://127\.0\.0\.1"):
        async with EventWatch(f"ws://127.0.0.1:{free_port()}/ws/sync", "t", []):
            pass
