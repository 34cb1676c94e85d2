"""How often something may be tried: counted before it is tried, so that parallel attempts count as well.

The counters are in identity's own database: they are about anonymous callers, worthless in an hour, and must not grow
the log. Keys are keyed hashes: the table holds neither addresses nor e-mails.
"""

import hashlib
import hmac
import random
from datetime import timedelta
from typing import Literal, NamedTuple

import asyncpg
from events.shapes import create_tables

Kind = Literal["login_account", "login_address", "otp", "code", "mail", "register_address"]

_PRUNE_ONE_IN = 500

_DDL = """
    CREATE TABLE IF NOT EXISTS attempt (
        key bytea PRIMARY KEY,
        taken int NOT NULL,
        ends_at timestamptz NOT NULL
    );
    CREATE INDEX IF NOT EXISTS attempt_ends_at ON attempt (ends_at);
"""
_TAKE = """
    INSERT INTO attempt AS a (key, taken, ends_at)
    SELECT key, 1, now() + span FROM unnest($1::bytea[], $2::interval[]) AS asked(key, span) ORDER BY key
    ON CONFLICT (key) DO UPDATE SET
        taken = CASE WHEN a.ends_at <= now() THEN 1 ELSE least(a.taken, 1000000) + 1 END,
        ends_at = CASE WHEN a.ends_at <= now() THEN excluded.ends_at ELSE a.ends_at END
    RETURNING key, taken, extract(epoch FROM ends_at - now())::float8 AS left_s
"""


class Limit(NamedTuple):
    """At most `attempts` within `window` of the first one; then none until it ends."""

    attempts: int
    window: timedelta


LIMITS: dict[Kind, Limit] = {
    "login_account": Limit(10, timedelta(minutes=15)),
    "login_address": Limit(100, timedelta(minutes=15)),
    "otp": Limit(5, timedelta(minutes=15)),
    "code": Limit(10, timedelta(minutes=15)),
    "mail": Limit(5, timedelta(hours=1)),
    "register_address": Limit(1000, timedelta(hours=1)),
}


class TooManyAttempts(Exception):
    """Wait. `first` is true for the attempt that met the limit first."""

    def __init__(self, kind: Kind, retry_after_s: int, *, first: bool) -> None:
        super().__init__(kind)
        self.kind = kind
        self.retry_after_s = retry_after_s
        self.first = first


class Throttle:
    """Counts attempts per kind and key, in all replicas together."""

    def __init__(self, database: "asyncpg.Pool[asyncpg.Record]", mac_key: bytes) -> None:
        self._database = database
        self._mac_key = mac_key

    async def prepare(self) -> None:
        """Creates the table."""
        await create_tables(self._database, "identity.throttle", _DDL)

    async def take(self, kind: Kind, key: str) -> None:
        """Counts one attempt.

        Raises:
            TooManyAttempts
            OSError, asyncpg.PostgresError: it cannot be counted, and so must not be tried.
        """
        await self.take_all((kind, key))

    async def take_all(self, *counted: tuple[Kind, str]) -> None:
        """Counts one attempt under each of the keys; the first one over its limit is told.

        Raises:
            TooManyAttempts
            OSError, asyncpg.PostgresError: it cannot be counted, and so must not be tried.
        """
        hashes = [self._hash(kind, key) for kind, key in counted]
        rows = await self._database.fetch(_TAKE, hashes, [LIMITS[kind].window for kind, _ in counted])
        by_hash = {row["key"]: row for row in rows}
        if random.randrange(_PRUNE_ONE_IN) == 0:  # noqa: S311 - when to sweep
            await self._database.execute("DELETE FROM attempt WHERE ends_at < now() - interval '1 minute'")
        for (kind, _), hashed in zip(counted, hashes, strict=True):
            row, attempts = by_hash[hashed], LIMITS[kind].attempts
            if row["taken"] > attempts:
                raise TooManyAttempts(kind, max(1, round(row["left_s"])), first=row["taken"] == attempts + 1)

    async def forgive_login(self, account: str, address: str) -> None:
        """Takes back what a login counted that had the right password: all of the account's, one of the address's."""
        await self._database.execute(
            "WITH account AS (DELETE FROM attempt WHERE key = $1)"
            " UPDATE attempt SET taken = taken - 1 WHERE key = $2 AND taken > 0",
            self._hash("login_account", account),
            self._hash("login_address", address),
        )

    async def forgive(self, kind: Kind, key: str, *, all_of_them: bool = False) -> None:
        """Takes back the attempt that succeeded, or all of them."""
        if all_of_them:
            await self._database.execute("DELETE FROM attempt WHERE key = $1", self._hash(kind, key))
        else:
            await self._database.execute(
                "UPDATE attempt SET taken = taken - 1 WHERE key = $1 AND taken > 0", self._hash(kind, key)
            )

    def _hash(self, kind: Kind, key: str) -> bytes:
        return hmac.new(self._mac_key, f"{kind}:{key}".encode(), hashlib.sha256).digest()[:16]
