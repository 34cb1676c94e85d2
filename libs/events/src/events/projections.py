"""Read models: pure consequences of the log, in the service's own database, rebuilt rather than migrated."""

from collections.abc import Callable, Sequence
from typing import Protocol

import asyncpg

from events.envelope import RecordedEvent
from events.retention import Retention
from events.shapes import Model, model_of, shape_of
from events.store import EventStore


class Projection(Protocol):
    """One read model: its table, and how events change it.

    `apply` gets only events of its `types`, in log order, inside the transaction that saves the position. It must be
    deterministic in the events alone (no clock, no randomness), so that a rebuild gives the same rows.
    `ddl` is idempotent and names its tables without a schema: a rebuild fills them in another one.

    `repeatable`, `effects` and `kept` may be there too, as on a consumer's `Handler`. So may `version`, a number that
    is raised when the same tables mean something else: a starting service builds anew what differs from its code by
    tables, event types or version (`events.succession`).
    """

    @property
    def name(self) -> str: ...
    @property
    def ddl(self) -> str: ...
    @property
    def types(self) -> frozenset[str]: ...

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None: ...


class Projections:
    """All read models of a service as one handler: one consumer, one position, one consistent answer."""

    def __init__(self, projections: Sequence[Projection]) -> None:
        self._projections = tuple(projections)
        self.models: dict[str, Model] = {projection.name: model_of(projection) for projection in projections}
        self.shape = shape_of(self.models)
        """Of all read models of the consumer, also where this is `only` some of them."""
        self.ddl = "\n".join(projection.ddl for projection in self._projections)
        self.types = frozenset().union(*(projection.types for projection in self._projections))
        self.repeatable = all(getattr(projection, "repeatable", False) for projection in self._projections)
        self.effects: dict[str, str] = {}
        self.kept: set[str] = set()
        for projection in self._projections:
            self.effects |= getattr(projection, "effects", {})
            self.kept |= set(getattr(projection, "kept", ()))
        self.retention: tuple[Retention, ...] = tuple(
            rule for projection in self._projections for rule in getattr(projection, "retention", ())
        )

    @property
    def names(self) -> list[str]:
        """The read models, in their order."""
        return [projection.name for projection in self._projections]

    def only(self, names: Sequence[str]) -> "Projections":
        """Some of them, in their order.

        Raises:
            LookupError: there is no read model of a name.
        """
        if unknown := set(names) - set(self.names):
            raise LookupError(f"no read model {', '.join(sorted(unknown))}; there are {', '.join(self.names)}")
        some = Projections([projection for projection in self._projections if projection.name in names])
        some.shape = self.shape
        return some

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """Gives each projection the events of its types."""
        there = {event.type for event in events}
        for projection in self._projections:
            if there and there <= projection.types:
                await projection.apply(db, events)
            elif not there.isdisjoint(projection.types):
                await projection.apply(db, [event for event in events if event.type in projection.types])


async def rebuild(
    projections: Projections,
    store: EventStore,
    db: asyncpg.Connection,
    schema: str,
    *,
    up_to: int,
    batch: int = 2_000,
    progress: Callable[[int], None] = lambda position: None,
) -> None:
    """Fills fresh tables in `schema` straight from the log, from position 0 up to and including `up_to`.

    `db` must be a connection of its own: its search path is changed.
    """
    await db.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE; CREATE SCHEMA "{schema}"')
    await db.execute(f'SET search_path = "{schema}"')
    await db.execute(projections.ddl)
    position = 0
    while position < up_to:
        events = await store.read_log(position, min(batch, up_to - position))
        if not events:
            raise LookupError(f"the log ends at {position}, before {up_to}")
        async with db.transaction():
            await projections.apply(db, events)
        position = events[-1].position
        progress(position)
