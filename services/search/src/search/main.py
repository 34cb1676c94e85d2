"""Wiring only."""

from collections.abc import Sequence
from pathlib import Path

from chassis.app import create_app
from chassis.cursors import CursorCodec
from chassis.service import Runtime, run
from events.envelope import RecordedEvent
from litestar import Litestar

from search import recent
from search.api import routes
from search.projections import projections
from search.projections.document import DocumentProjection
from search.replica import Replica
from search.settings import SearchSettings


async def wire(runtime: Runtime[SearchSettings]) -> Litestar:
    consumer = runtime.project(projections(runtime.subject_keys))

    async def epoch() -> object:
        return (await runtime.store.head()).epoch

    async def caught_up(position: int) -> object:
        return await consumer.wait_for(position, 1.0, hurry=False)

    replica = Replica(runtime.database, Path(runtime.settings.index_directory), epoch=epoch, caught_up=caught_up)

    async def wake(events: Sequence[RecordedEvent]) -> None:
        mine = [event.position for event in events if event.type in DocumentProjection.types]
        if mine:
            replica.wake(mine[-1])

    runtime.follow(wake)
    await recent.prepare(runtime.database)
    runtime.spawn(replica.run(), "search.index")
    cursors = CursorCodec(runtime.settings.cursor_secret)
    return create_app(runtime, routes(runtime.database, replica, cursors), title="Sangam search")


def main() -> None:
    """Starts the service and returns when it has been told to stop."""
    run("search", SearchSettings, wire)
