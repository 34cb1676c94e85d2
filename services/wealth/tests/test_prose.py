"""Words from an OpenAI-compatible endpoint: used when they keep the facts, against a real HTTP server."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from pictures import computed, share
from wealth.insights import Insight, Thresholds
from wealth.prose import OpenAiProse, numbers_in


def insight() -> Insight:
    seen = computed(Thresholds(concentration_percent=101.0), items=[share("ABC", 100, 1_000_00, 1_300_00)])
    return seen.shown[0].insight


class Endpoint:
    """Answers what a test tells it to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[], web.Response] = lambda: web.Response(status=500)
        self.delay_s = 0.0
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        self.headers.append(dict(request.headers))
        await asyncio.sleep(self.delay_s)
        return self.answer()

    def says(self, title: str, body: str) -> None:
        content = json.dumps({"title": title, "body": body})
        document = {"choices": [{"message": {"role": "assistant", "content": content}}]}
        self.answer = lambda: web.json_response(document)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    served = Endpoint()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", served.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield served
    await runner.cleanup()


@pytest.fixture
async def prose(endpoint: Endpoint) -> AsyncIterator[OpenAiProse]:
    async with aiohttp.ClientSession() as http:
        yield OpenAiProse(http, endpoint.url, "small", "a-key-for-tests", timeout_s=0.5)


async def test_words_that_keep_the_facts_are_used(endpoint: Endpoint, prose: OpenAiProse) -> None:
    endpoint.says("Good news: ABC has gained 30.0%", "Your ₹1,00,000 position is worth ₹30,000 more than it cost.")
    assert await prose.reword(insight()) == (
        "Good news: ABC has gained 30.0%",
        "Your ₹1,00,000 position is worth ₹30,000 more than it cost.",
    )
    assert endpoint.asked[0]["model"] == "small"
    assert endpoint.headers[0]["Authorization"] == "Bearer a-key-for-tests"
    sent = json.dumps(endpoint.asked[0])
    assert "account" not in sent.replace("account:", "account")
    assert "00000000" not in sent, "no id leaves"


@pytest.mark.parametrize(
    ("title", "body"),
    [
        ("ABC is up 31.0%", "It gained."),
        ("ABC is up 30.0%", "It stands ₹30,001 above cost."),
        ("ABC is up 30.0%", "In 2027 it will double."),
        ("ABC is up", "A fine gain."),
        ("", "ABC is up 30.0%"),
        ("ABC is up 30.0%", "<script>alert(30.0)</script>"),
        ("ABC is up 30.0%", "x" * 601),
    ],
)
async def test_words_that_change_a_number_are_not(
    endpoint: Endpoint, prose: OpenAiProse, title: str, body: str
) -> None:
    endpoint.says(title, body)
    assert await prose.reword(insight()) is None
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(status=500),
        lambda: web.Response(text="not json"),
        lambda: web.json_response([]),
        lambda: web.json_response({"choices": []}),
        lambda: web.json_response({"choices": [{"message": {"content": "no json"}}]}),
        lambda: web.json_response({"choices": [{"message": {"content": None}}]}),
        lambda: web.Response(body=b"\xff" * 10),
    ],
)
async def test_an_odd_endpoint_means_the_template(
    endpoint: Endpoint, prose: OpenAiProse, answer: Callable[[], web.Response]
) -> None:
    endpoint.answer = answer
    assert await prose.reword(insight()) is None


GOOD = {"title": "ABC is up 30.0%", "body": "It gained."}


def document(words: dict[str, str]) -> str:
    return json.dumps({"choices": [{"message": {"content": json.dumps(words)}}]})


async def test_an_answer_without_end_is_not_read(endpoint: Endpoint, prose: OpenAiProse) -> None:
    endpoint.answer = lambda: web.Response(text=document(GOOD) + " " * 60_000)
    assert await prose.reword(insight()) is not None
    endpoint.answer = lambda: web.Response(text=document(GOOD) + " " * 70_000)
    assert await prose.reword(insight()) is None


async def test_the_facts_go_nowhere_else(endpoint: Endpoint, prose: OpenAiProse) -> None:
    """A redirect (307 would carry the body on) is no answer, however well it ends."""
    turns = [web.Response(status=307, headers={"Location": endpoint.url + "/chat/completions"}),
             web.Response(text=document(GOOD))]  # fmt: skip
    endpoint.answer = lambda: turns.pop(0)
    assert await prose.reword(insight()) is None
    assert len(endpoint.asked) == 1


async def test_a_slow_or_absent_endpoint_means_the_template(endpoint: Endpoint, prose: OpenAiProse) -> None:
    endpoint.says("ABC is up 30.0%", "It gained.")
    endpoint.delay_s = 5
    assert await prose.reword(insight()) is None
    async with aiohttp.ClientSession() as http:
        nobody = OpenAiProse(http, "http://127.0.0.1:9/v1", "small", None, timeout_s=0.5)
        assert await nobody.reword(insight()) is None


def test_numbers_are_compared_as_numbers() -> None:
    assert numbers_in("₹1,25,000.50 of 30.0%") == numbers_in("125000.5, 30") == {"125000.5", "30"}
    assert numbers_in("007") == {"7"}
