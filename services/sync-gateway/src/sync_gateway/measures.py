"""What is measured, kept in buckets of ten seconds: counts, and latencies as histograms that can be added up.

Every replica writes its own rows, so that figures over a window are sums over replicas and survive restarts.
"""

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import uuid4

import asyncpg
import structlog
from events.outage import is_outage

log = structlog.get_logger(__name__)

MEASURES_DDL = """
    CREATE TABLE IF NOT EXISTS measure (
        bucket timestamptz NOT NULL,
        replica uuid NOT NULL,
        name text NOT NULL,
        count bigint NOT NULL,
        places int[] NOT NULL DEFAULT '{}',
        counts bigint[] NOT NULL DEFAULT '{}',
        PRIMARY KEY (bucket, name, replica)
    );
"""

BUCKET_S = 10
KEPT = timedelta(hours=25)
FLUSH_EVERY_S = 2.0
_LEAST_MS = 0.1
_GROWTH = math.log(1.05)
"""Neighbouring places differ by 5 %: a quantile is right to that."""


def place_of(latency_ms: float) -> int:
    """The histogram's place of a latency."""
    return max(0, math.ceil(math.log(max(latency_ms, _LEAST_MS) / _LEAST_MS) / _GROWTH))


def latency_at(place: int) -> float:
    """The longest latency (ms) of a place."""
    return round(_LEAST_MS * math.exp(place * _GROWTH), 3)


def quantile_ms(histogram: "Counter[int]", q: float) -> float | None:
    """The latency below which the share `q` of the samples lies; None without samples."""
    total = sum(histogram.values())
    if not total:
        return None
    seen = 0
    for place in sorted(histogram):
        seen += histogram[place]
        if seen >= q * total:
            return latency_at(place)
    raise AssertionError("quantiles lie within the samples")


class Sums(NamedTuple):
    """A window's figures by name."""

    counts: dict[str, int]
    histograms: "dict[str, Counter[int]]"
    seconds: float
    """How long the window is in whole buckets, up to now."""

    def quantiles(self, name: str) -> dict[str, float | None]:
        histogram = self.histograms.get(name, Counter())
        return {label: quantile_ms(histogram, q) for label, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}


class Measures:
    """Counts in memory, writes every other second."""

    def __init__(self, database: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._database = database
        self._replica = uuid4()
        self._counts: Counter[tuple[datetime, str]] = Counter()
        self._histograms: defaultdict[tuple[datetime, str], Counter[int]] = defaultdict(Counter)

    def count(self, name: str, by: int = 1) -> None:
        self._counts[_bucket(datetime.now(UTC)), name] += by

    def latency(self, name: str, latencies_ms: Sequence[float]) -> None:
        """Samples; their number is counted under the same name."""
        bucket = _bucket(datetime.now(UTC))
        self._counts[bucket, name] += len(latencies_ms)
        self._histograms[bucket, name].update(map(place_of, latencies_ms))

    async def flush(self) -> None:
        """Adds what was counted since to the table."""
        counts, self._counts = self._counts, Counter()
        histograms, self._histograms = self._histograms, defaultdict(Counter)
        if not counts:
            return
        rows = [
            (bucket, name, count, list(histograms[bucket, name]), list(histograms[bucket, name].values()))
            for (bucket, name), count in counts.items()
        ]
        try:
            # A bucket that is written twice appends to its arrays; places may repeat, sums do not mind.
            await self._database.executemany(
                "INSERT INTO measure AS known (bucket, replica, name, count, places, counts)"
                " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (bucket, name, replica) DO UPDATE SET"
                " count = known.count + excluded.count, places = known.places || excluded.places,"
                " counts = known.counts || excluded.counts",
                [(bucket, self._replica, name, count, places, by) for bucket, name, count, places, by in rows],
            )
        except Exception as error:
            if not is_outage(error):
                raise
            log.warning("measures_not_written", error=repr(error))
            self._counts.update(counts)
            for key, histogram in histograms.items():
                self._histograms[key].update(histogram)

    async def flush_forever(self) -> None:
        """Writes now and then, and forgets what is older than a day."""
        flushes = 0
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            await self.flush()
            flushes += 1
            if flushes % 300 == 0:
                try:
                    await self._database.execute("DELETE FROM measure WHERE bucket < $1", datetime.now(UTC) - KEPT)
                except Exception as error:
                    if not is_outage(error):
                        raise

    async def window(self, window: timedelta) -> Sums:
        """The sums over the latest `window`, this process's newest included."""
        await self.flush()
        now = datetime.now(UTC)
        since = _bucket(now - window)
        rows = await self._database.fetch("SELECT name, count, places, counts FROM measure WHERE bucket >= $1", since)
        counts: Counter[str] = Counter()
        histograms: defaultdict[str, Counter[int]] = defaultdict(Counter)
        for row in rows:
            counts[row["name"]] += row["count"]
            for place, count in zip(row["places"], row["counts"], strict=True):
                histograms[row["name"]][place] += count
        return Sums(dict(counts), dict(histograms), (now - since).total_seconds())


def _bucket(now: datetime) -> datetime:
    return now.replace(second=now.second // BUCKET_S * BUCKET_S, microsecond=0)
