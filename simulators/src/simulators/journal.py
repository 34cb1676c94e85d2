"""What a platform remembers: its customers, every event it emitted, and which of them are still to be pushed.

One SQLite database, in `PLATFORM_STATE_DIR` or in memory. Emitting an event and queueing it for the
feed is one insert, so a killed platform neither forgets an event nor reuses a sequence number.
"""

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

_DDL = """
CREATE TABLE IF NOT EXISTS customer (customer_id TEXT PRIMARY KEY, pin TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS event (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    customer_id TEXT NOT NULL REFERENCES customer,
    sequence INTEGER NOT NULL,
    type TEXT NOT NULL,
    occurred_at TEXT NOT NULL,
    data BLOB NOT NULL,
    delivery TEXT NOT NULL DEFAULT 'pending' CHECK (delivery IN ('pending', 'delivered', 'rejected')),
    reason TEXT,
    UNIQUE (customer_id, sequence)
) STRICT;
CREATE INDEX IF NOT EXISTS event_pending ON event (n) WHERE delivery = 'pending';
CREATE INDEX IF NOT EXISTS event_latest ON event (customer_id, type, sequence);
CREATE VIEW IF NOT EXISTS item AS
    SELECT n, delivery, id, sequence, type, occurred_at, customer_id, data FROM event;
CREATE TABLE IF NOT EXISTS webhook_secret (secret TEXT PRIMARY KEY) STRICT;
CREATE TABLE IF NOT EXISTS live (every_s REAL NOT NULL) STRICT;
"""


class UnknownCustomer(Exception):
    """The platform has no such customer."""


class CustomerExists(Exception):
    """The customer exists with another pin."""


class EventIdTaken(Exception):
    """An event of this id with other content was emitted before."""


class FeedItem(msgspec.Struct, frozen=True, kw_only=True):
    """One event in the form the feed and the pull side carry it."""

    id: str
    sequence: int
    """Gap-free per customer, from 1."""
    type: str
    occurred_at: str
    customer_id: str
    data: msgspec.Raw


class Customer(msgspec.Struct, frozen=True, kw_only=True):
    """A customer as `GET /customers` shows them."""

    customer_id: str
    last_sequence: int


class Counts(NamedTuple):
    """How far the feed has come."""

    pending: int
    rejected: int


def _item(row: tuple[int, str, str, int, str, str, str, bytes]) -> FeedItem:
    _n, _delivery, event_id, sequence, type_, occurred_at, customer_id, data = row
    return FeedItem(
        id=event_id,
        sequence=sequence,
        type=type_,
        occurred_at=occurred_at,
        customer_id=customer_id,
        data=msgspec.Raw(data),
    )


class Journal:
    """The memory of one platform. Not shared between threads or processes."""

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # It holds pins and webhook secrets: for its owner's eyes, from its first byte.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._db = sqlite3.connect(path if path is not None else ":memory:", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.executescript(_DDL)

    @property
    def database(self) -> sqlite3.Connection:
        """For what is kept beside the journal (`books.py`)."""
        return self._db

    def close(self) -> None:
        self._db.close()

    def add_customer(self, customer_id: str, pin: str) -> bool:
        """True when the customer is new, False when they were known with this pin.

        Raises:
            CustomerExists: known with another pin.
        """
        known = self.pin_of(customer_id)
        if known is not None:
            if known != pin:
                raise CustomerExists(customer_id)
            return False
        self._db.execute("INSERT INTO customer (customer_id, pin) VALUES (?, ?)", (customer_id, pin))
        return True

    def pin_of(self, customer_id: str) -> str | None:
        row = self._db.execute("SELECT pin FROM customer WHERE customer_id = ?", (customer_id,)).fetchone()
        return None if row is None else str(row[0])

    def customers(self) -> list[Customer]:
        """Everyone, in the order they came."""
        rows = self._db.execute(
            "SELECT c.customer_id, COALESCE(MAX(e.sequence), 0) "
            "FROM customer c LEFT JOIN event e USING (customer_id) GROUP BY c.customer_id ORDER BY c.rowid"
        )
        return [Customer(customer_id=customer_id, last_sequence=last) for customer_id, last in rows]

    def emit(
        self, *, event_id: str, customer_id: str, type_: str, occurred_at: str, data: bytes
    ) -> tuple[FeedItem, bool]:
        """Record an event under the customer's next sequence number and queue it for the feed.

        Emitting the same event again returns what is recorded, and False for "not new".

        Raises:
            UnknownCustomer: no such customer.
            EventIdTaken: the id is that of another event.
        """
        if self.pin_of(customer_id) is None:
            raise UnknownCustomer(customer_id)
        known = self._item_of(event_id)
        if known is not None:
            same = (customer_id, type_, occurred_at, data)
            if (known.customer_id, known.type, known.occurred_at, bytes(known.data)) != same:
                raise EventIdTaken(event_id)
            return known, False
        self._db.execute(
            "INSERT INTO event (id, customer_id, sequence, type, occurred_at, data) "
            "SELECT ?1, ?2, COALESCE(MAX(sequence), 0) + 1, ?3, ?4, ?5 FROM event WHERE customer_id = ?2",
            (event_id, customer_id, type_, occurred_at, data),
        )
        item = self._item_of(event_id)
        assert item is not None
        return item, True

    def _item_of(self, event_id: str) -> FeedItem | None:
        row = self._db.execute("SELECT * FROM item WHERE id = ?", (event_id,)).fetchone()
        return None if row is None else _item(row)

    def events(self, customer_id: str, after: int, limit: int) -> list[FeedItem]:
        """What happened to a customer after sequence number `after`, in order.

        Raises:
            UnknownCustomer: no such customer.
        """
        if self.pin_of(customer_id) is None:
            raise UnknownCustomer(customer_id)
        rows = self._db.execute(
            "SELECT * FROM item WHERE customer_id = ? AND sequence > ? ORDER BY sequence LIMIT ?",
            (customer_id, after, limit),
        )
        return [_item(row) for row in rows]

    def latest(self, customer_id: str, type_: str) -> FeedItem | None:
        """The newest event of that type of a customer."""
        row = self._db.execute(
            "SELECT * FROM item WHERE customer_id = ? AND type = ? ORDER BY sequence DESC LIMIT 1",
            (customer_id, type_),
        ).fetchone()
        return None if row is None else _item(row)

    def pending(self, limit: int) -> list[FeedItem]:
        """What is still to be pushed, oldest first."""
        rows = self._db.execute(
            "SELECT * FROM item WHERE delivery = 'pending' ORDER BY n LIMIT ?",
            (limit,),
        )
        return [_item(row) for row in rows]

    def settle(self, delivered: Iterable[str], rejected: Iterable[tuple[str, str]]) -> None:
        """Take events off the queue: taken over by the receiver, or refused for ever with a reason."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(
            "UPDATE event SET delivery = 'delivered' WHERE id = ?", [(event_id,) for event_id in delivered]
        )
        self._db.executemany(
            "UPDATE event SET delivery = 'rejected', reason = ? WHERE id = ?",
            [(reason, event_id) for event_id, reason in rejected],
        )
        self._db.execute("COMMIT")

    def counts(self) -> Counts:
        pending, rejected = self._db.execute(
            "SELECT (SELECT count(*) FROM event WHERE delivery = 'pending'), "
            "(SELECT count(*) FROM event WHERE delivery = 'rejected')"
        ).fetchone()
        return Counts(pending, rejected)

    def teach_secret(self, secret: str) -> None:
        """A webhook secret to verify with from now on."""
        self._db.execute("INSERT OR IGNORE INTO webhook_secret (secret) VALUES (?)", (secret,))

    def secrets(self) -> list[str]:
        return [secret for (secret,) in self._db.execute("SELECT secret FROM webhook_secret")]

    def set_live(self, every_s: float) -> None:
        """Seconds between live items; 0 is off. Kept, so that a restarted platform stays alive."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("DELETE FROM live")
        self._db.execute("INSERT INTO live (every_s) VALUES (?)", (every_s,))
        self._db.execute("COMMIT")

    def live_every_s(self) -> float:
        row = self._db.execute("SELECT every_s FROM live").fetchone()
        return 0.0 if row is None else float(row[0])
