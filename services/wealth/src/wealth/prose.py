"""Optional: an OpenAI-compatible endpoint words an insight; the facts stay ours.

A rewritten text is used only if every number in it is one of the numbers of the template and its evidence, and it
keeps all numbers of the title. Otherwise, and whenever the endpoint is away, slow or odd, the template is used.
Nothing but the insight's own text and evidence is sent: no name, no account, no id.
"""

import asyncio
import re
from typing import Any, Protocol

import aiohttp
import msgspec
import structlog

from wealth.insights import Insight

log = structlog.get_logger(__name__)

ANSWER_BYTES_MAX = 64 * 1024
TITLE_LENGTH_MAX = 120
BODY_LENGTH_MAX = 600
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_INSTRUCTIONS = (
    "Reword this note about a customer's own money in plain, friendly English. Keep every number exactly as it is "
    'written, add none, give no advice. Answer with JSON only: {"title": "...", "body": "..."}.'
)


class Words(msgspec.Struct, frozen=True):
    title: str
    body: str


class Prose(Protocol):
    """Words an insight, or gives None where the template is to be used."""

    async def reword(self, insight: Insight) -> tuple[str, str] | None: ...


def numbers_in(text: str) -> set[str]:
    """The numbers in a text, without grouping and trailing zeros: "₹1,25,000.50" and "125000.5" are one."""
    found = set()
    for match in _NUMBER.findall(text):
        whole, _, decimals = match.replace(",", "").partition(".")
        decimals = decimals.rstrip("0")
        found.add((whole.lstrip("0") or "0") + (f".{decimals}" if decimals else ""))
    return found


def keeps_the_facts(words: Words, insight: Insight) -> bool:
    """Whether a rewritten text says what the template says, as far as numbers tell."""
    known = numbers_in(f"{insight.title} {insight.body} {insight.facts}")
    said = numbers_in(f"{words.title} {words.body}")
    return said <= known and numbers_in(insight.title) <= said


class OpenAiProse:
    """`POST {base}/chat/completions` (OpenAI's Chat Completions API)."""

    def __init__(self, http: aiohttp.ClientSession, url: str, model: str, key: str | None, *, timeout_s: float) -> None:
        self._http = http
        self._url = url.rstrip("/") + "/chat/completions"
        self._model = model
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout_s = timeout_s

    async def reword(self, insight: Insight) -> tuple[str, str] | None:
        """Title and body in other words; None where the template is to be used."""
        try:
            async with asyncio.timeout(self._timeout_s):
                words = await self._ask(insight)
        except (TimeoutError, aiohttp.ClientError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("prose.unavailable", error=type(error).__name__)
            return None
        if words is None or not _plain(words) or not keeps_the_facts(words, insight):
            log.warning("prose.refused", rule=insight.rule)
            return None
        return words.title, words.body

    async def _ask(self, insight: Insight) -> Words | None:
        note = {"title": insight.title, "body": insight.body, "facts": insight.facts}
        request = {
            "model": self._model,
            "temperature": 0.2,
            "messages": [
                {"role": "system", "content": _INSTRUCTIONS},
                {"role": "user", "content": msgspec.json.encode(note).decode()},
            ],
        }
        async with self._http.post(self._url, json=request, headers=self._headers, allow_redirects=False) as response:
            if response.status != 200:
                return None
            body = await response.content.read(ANSWER_BYTES_MAX + 1)
            while len(body) <= ANSWER_BYTES_MAX and (more := await response.content.read(ANSWER_BYTES_MAX)):
                body += more
        if len(body) > ANSWER_BYTES_MAX:
            return None
        answer: Any = msgspec.json.decode(body)
        match answer:
            case {"choices": [{"message": {"content": str(content)}}, *_]}:
                return msgspec.json.decode(content, type=Words)
        return None


def _plain(words: Words) -> bool:
    """Text only, of a bearable length: it is shown to a person, not rendered."""
    return (
        0 < len(words.title.strip()) <= TITLE_LENGTH_MAX
        and 0 < len(words.body.strip()) <= BODY_LENGTH_MAX
        and not any(character in words.title + words.body for character in "<>\0")
    )
