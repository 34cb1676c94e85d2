"""What we ask of the platforms: the pull side of the feed."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlencode

import aiohttp
import msgspec

from sync_gateway.feeds import Platform

PAGE = 500
ATTEMPTS = 3
_PAUSE_S = 0.3
_ANSWER_BYTES_MAX = 16 * 1024 * 1024


class PlatformAway(Exception):
    """The platform cannot be asked. `reason` is a stable word."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Items(msgspec.Struct, frozen=True):
    items: list[dict[str, Any]]


class Platforms:
    """HTTP clients of both platforms. Use it as an async context manager."""

    def __init__(self, urls: Mapping[Platform, str], *, timeout_s: float = 10.0) -> None:
        self._urls = urls
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Platforms":
        self._session = aiohttp.ClientSession(timeout=self._timeout, trust_env=False)
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def items_after(
        self, platform: Platform, customer_id: str, sequence: int
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """The customer's items after a sequence number, in order, page by page.

        Raises:
            PlatformAway
        """
        after = sequence
        while True:
            page = await self._get(platform, "/events", customer_id=customer_id, after=after, limit=PAGE)
            if page:
                yield page
            sequences = [item["sequence"] for item in page if isinstance(item.get("sequence"), int)]
            if len(page) < PAGE or not sequences or max(sequences) <= after:
                return
            after = max(sequences)

    async def balances(self, platform: Platform, customer_id: str) -> list[dict[str, Any]]:
        """What the platform says that the customer's accounts hold now, as feed items.

        Raises:
            PlatformAway
        """
        return await self._get(platform, "/balances", customer_id=customer_id)

    async def _get(self, platform: Platform, path: str, **query: Any) -> list[dict[str, Any]]:
        url = self._urls.get(platform)
        if url is None:
            raise PlatformAway("not_configured")
        assert self._session is not None, "used outside of its context"
        away = PlatformAway("unreachable")
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(_PAUSE_S * 4 ** (attempt - 1))
            try:
                async with self._session.get(f"{url}{path}?{urlencode(query)}", allow_redirects=False) as response:
                    if response.status == 404:
                        return []
                    if response.status != 200:
                        away = PlatformAway(f"http_{response.status}")
                        continue
                    body = await response.content.read(_ANSWER_BYTES_MAX)
                    while not response.content.at_eof() and len(body) < _ANSWER_BYTES_MAX:
                        body += await response.content.read(_ANSWER_BYTES_MAX)
                    return msgspec.json.decode(body, type=_Items).items
            except TimeoutError:
                away = PlatformAway("timeout")
            except msgspec.DecodeError:
                away = PlatformAway("unreadable")
            except (aiohttp.ClientError, OSError):
                away = PlatformAway("unreachable")
        raise away
