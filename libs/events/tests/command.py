"""What the tests of `sangam` share: a log to look at, and the command run on it."""

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import asyncpg
from backbone import event
from events.cli import app
from events.envelope import Metadata, new_id
from events.sequencer import Sequencer
from events.store import EventStore, StreamAppend
from typer.testing import CliRunner

if TYPE_CHECKING:
    from provision import Cell

SERVICES = ("identity", "ledger_transfer", "sync_gateway", "wealth", "notifier", "search")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document."""
        return self.lines[-1]

    @property
    def lines(self) -> list[Any]:
        """A document a line. What a consumer of the same test logs meanwhile comes between."""
        return [json.loads(line) for line in self.out.splitlines() if line.startswith(("{", "["))]


async def sangam(cell: "Cell | None", *arguments: str | Path | int | UUID, **environment: str | None) -> Outcome:
    """The command's outcome; beside the test's own event loop, as it has one itself."""
    env: dict[str, str | None] = {"EVENT_STORE_URL": cell.admin_url() if cell is not None else None, **environment}
    result = await asyncio.to_thread(CliRunner(env=env).invoke, app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


class Writer:
    """Appends and sequences by hand, so that positions are known: no relay."""

    def __init__(self, cell: "Cell") -> None:
        self.cell = cell
        self.admin: asyncpg.Connection
        self.store: EventStore
        self._relay: asyncpg.Connection
        self._sequencer: Sequencer

    async def __aenter__(self) -> "Writer":
        self.admin = await asyncpg.connect(self.cell.admin_url())
        self.store = await EventStore.connect(self.cell.store_url("ledger_transfer"))
        self._relay = await asyncpg.connect(self.cell.store_url("relay"))
        sequencer = await Sequencer.take_over(self._relay)
        assert sequencer is not None
        self._sequencer = sequencer
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(self.admin.close(), self._relay.close(), self.store.close())

    async def append(
        self,
        stream: str = "ledger-a",
        *,
        count: int = 1,
        subject: UUID | None = None,
        correlation_id: str | None = None,
        causation_id: UUID | None = None,
    ) -> UUID:
        """Appends without a position; gives the first event's id."""
        event_id = new_id()
        await self.store.append(
            [StreamAppend(stream, tuple(event(n) for n in range(count)))],
            event_id=event_id,
            subject=subject,
            metadata=Metadata(correlation_id=correlation_id, causation_id=causation_id, actor="service:test"),
        )
        return event_id

    async def sequence(self) -> None:
        """Gives positions to all that has none."""
        while await self._sequencer.sequence():
            pass

    async def log(self, stream: str = "ledger-a", **options: Any) -> UUID:
        """Appends and sequences."""
        event_id = await self.append(stream, **options)
        await self.sequence()
        return event_id
