"""A consumer's checkpoint: its row in `consumed`, which says what its tables hold."""

import time
from typing import cast
from uuid import UUID

import asyncpg

from events import operations, parking
from events.parking import Parking
from events.succession import Superseded

DDL = (
    """
    CREATE TABLE IF NOT EXISTS consumed (
        consumer text PRIMARY KEY,
        position bigint NOT NULL DEFAULT 0,
        epoch uuid,
        parkings bigint NOT NULL DEFAULT 0,
        tables text[] NOT NULL DEFAULT '{}',
        shape text, -- of read models: which version's tables are live (events.shapes)
        models bytea
    );
"""
    + parking.DDL
    + operations.DDL
)


class Checkpoint:
    """What this process knows of the row. Another replica, another version or an operator may change it at any time.

    Args:
        shape: of this version's tables; None where they are not built from the log.
    """

    def __init__(self, consumer: str, shape: str | None, database: asyncpg.Pool, parking: Parking) -> None:
        self._consumer = consumer
        self._shape = shape
        self._database = database
        self._parking = parking
        self.position = 0
        """As it was last seen or written. What is applied may be further, over events that are not the consumer's."""
        self.epoch: UUID | None = None
        self.saved_at_s = 0.0
        """When it was last written, on the monotonic clock."""

    async def load(self) -> None:
        """Reads everything anew.

        Raises:
            Superseded: it is of another version's tables.
        """
        row = self._ours(
            await self._database.fetchrow(
                "SELECT position, epoch, parkings, shape FROM consumed WHERE consumer = $1", self._consumer
            )
        )
        self.position = row["position"]
        self.epoch = UUID(int=row["epoch"].int) if row["epoch"] is not None else None
        await self._parking.load(self._database, row["parkings"])

    async def load_parked(self) -> None:
        """Reads anew what is parked, where somebody has changed it.

        Raises:
            Superseded: the row is of another version's tables.
        """
        row = self._ours(
            await self._database.fetchrow("SELECT parkings, shape FROM consumed WHERE consumer = $1", self._consumer)
        )
        if row["parkings"] != self._parking.version:
            await self._parking.load(self._database, row["parkings"])

    async def current(self) -> int:
        """The position in the database; 0 where another version's tables are live."""
        position: int | None = await self._database.fetchval(
            "SELECT position FROM consumed WHERE consumer = $1 AND shape IS NOT DISTINCT FROM $2",
            self._consumer,
            self._shape,
        )
        return position or 0

    async def lock(self, db: asyncpg.Connection) -> bool:
        """Locks the row for this transaction: whether it is as this process knows it. What is parked is known then.

        Raises:
            Superseded: it is of another version's tables.
        """
        # The log is the truth: a read model that loses its last commit in a crash loses its position with
        # it, and applies the same events again. So no wait for the disk.
        row = self._ours(
            await db.fetchrow(
                "SELECT position, parkings, shape, set_config('synchronous_commit', 'off', true) FROM consumed"
                " WHERE consumer = $1 FOR UPDATE",
                self._consumer,
            )
        )
        if row["parkings"] != self._parking.version:
            await self._parking.load(db, row["parkings"])
        return cast(int, row["position"]) == self.position

    async def move(self, db: asyncpg.Connection, position: int, epoch: UUID | None) -> None:
        """Writes a position, in the transaction that holds the lock; call `moved` once it is committed."""
        await db.execute(
            "UPDATE consumed SET position = $2, epoch = $3 WHERE consumer = $1", self._consumer, position, epoch
        )

    def moved(self, position: int) -> None:
        """What `move` has written is committed."""
        self.position = position
        self.saved_at_s = time.monotonic()

    async def save(self, position: int, epoch: UUID | None) -> bool:
        """Writes a position that only events of no interest have moved. False: the row is not as known here."""
        self.saved_at_s = time.monotonic()
        if position == self.position:
            return True
        saved = await self._database.fetchval(
            "UPDATE consumed SET position = $2, epoch = $3 WHERE consumer = $1 AND position = $4"
            " AND shape IS NOT DISTINCT FROM $5 RETURNING position",
            self._consumer,
            position,
            epoch,
            self.position,
            self._shape,
        )
        if saved is None:
            return False
        self.position = saved
        return True

    def _ours(self, row: asyncpg.Record | None) -> asyncpg.Record:
        assert row is not None, "the row is made when the consumer starts, and nobody deletes it"
        if row["shape"] != self._shape:
            raise Superseded(self._consumer)
        return row
