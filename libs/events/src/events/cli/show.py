"""`sangam events show`: one event, its stream, and why it is there."""

from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text
from rich.tree import Tree

from events.cli import output
from events.cli.connection import FOUND, EnvOption, JsonOption, StoreOption, find_servers, opened, run
from events.cli.reading import event_of, head_position, read_one, which_event
from events.cli.tree import Family, Node, family_of, stream_neighbours
from events.envelope import RecordedEvent


def show(
    which: Annotated[str, typer.Argument(metavar="EVENT_ID|POSITION", help="As `events tail` and the logs name it.")],
    horizon: Annotated[
        int, typer.Option("--horizon", min=0, help="How many positions further to look for consequences.")
    ] = 100_000,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one event with its place in its stream, and its causes and consequences as a tree.

    Exit code 1 if there is no such event.

    Example: sangam events show 1200
    """
    servers = find_servers(store, env)
    target = which_event(which)
    if target is None:
        raise typer.BadParameter(f"{which!r} is neither a position nor an event id (UUID)")

    async def work() -> int:
        async with opened(servers.store) as session:
            row = await read_one(session, target)
            if row is None:
                output.complain(f"there is no event {which}")
                return FOUND
            event = event_of(row)
            head = await head_position(session)
            neighbours, last_version = await stream_neighbours(session, event)
            family = await family_of(session, event, head, horizon)
        if as_json:
            output.print_json(
                {
                    "event": output.cloud_event(event),
                    "sequenced": event.position > 0,
                    "chain_hash": row["chain_hash"].hex() if row["chain_hash"] else None,
                    "stream": {
                        "last_version": last_version,
                        "previous": next((_named(e) for e in neighbours if e.version < event.version), None),
                        "next": next((_named(e) for e in neighbours if e.version > event.version), None),
                    },
                    "tree": _nested(family.root),
                    "lost_cause": family.lost_cause,
                    "same_request": [_named(e) for e in family.request],
                    "searched": [{"after": after, "up_to": up_to} for after, up_to in family.searched],
                }
            )
            return 0
        out = output.stdout()
        for line in _facts(event, row["chain_hash"], last_version):
            out.print(line, soft_wrap=True)
        out.print()
        for neighbour in neighbours:
            where = "before it  " if neighbour.version < event.version else "after it   "
            out.print(Text(where).append_text(output.event_line(neighbour, with_data=False)), soft_wrap=True)
        if neighbours:
            out.print()
        _print_family(family, event, head)
        return 0

    run(servers, work)


def _facts(event: RecordedEvent, chain_hash: bytes | None, last_version: int) -> list[Text]:
    metadata = event.metadata
    facts = {
        "event": str(event.event_id),
        "type": f"{event.type} v{event.schema_version} ({'public' if event.public else 'private'})",
        "position": f"{event.position:,}" if event.position else "none yet: it waits for the relay",
        "recorded": output.clock(event.recorded_at),
        "stream": f"{event.stream}, version {event.version} of {last_version}",
        "subject": event.subject,
        "actor": metadata.actor,
        "platform": metadata.platform,
        "correlation": metadata.correlation_id,
        "cause": metadata.causation_id,
        "trace": metadata.traceparent,
        "chain hash": chain_hash.hex() if chain_hash else None,
    }
    lines = [
        Text(f"{name:<12}", style="bold").append(output.printable(str(value)), style="not bold")
        for name, value in facts.items()
        if value is not None
    ]
    try:
        data = [output.printable(line) for line in msgspec.json.format(event.data, indent=2).decode().split("\n")]
    except (msgspec.DecodeError, UnicodeDecodeError):
        data = [f"not JSON: {output.as_text(event.data)}"]
    lines.append(Text("data", style="bold"))
    return [*lines, *(Text("  " + line) for line in data)]


def _print_family(family: Family, event: RecordedEvent, head: int) -> None:
    out = output.stdout()

    def label(node: Node) -> Text:
        line = output.event_line(node.event, with_data=False, width=0)
        if node.event.event_id == event.event_id:
            line.stylize("bold reverse")
            line.append("  ← this one")
        return line

    def grow(tree: Tree, node: Node) -> None:
        for consequence in node.consequences:
            grow(tree.add(label(consequence)), consequence)

    out.print(Text("causes and consequences", style="bold"))
    if family.lost_cause is not None:
        out.print(f"its first cause {family.lost_cause} is not in the store")
    tree = Tree(label(family.root))
    grow(tree, family.root)
    out.print(tree, soft_wrap=True)
    if family.request:
        out.print()
        out.print(Text(f"also of the request {output.printable(event.metadata.correlation_id or '')}", style="bold"))
        for other in family.request:
            out.print(output.event_line(other, with_data=False), soft_wrap=True)
    if family.searched and family.searched[-1][1] < head:
        out.print()
        out.print(
            f"consequences were looked for up to position {family.searched[-1][1]:,} of {head:,};"
            " --horizon looks further",
            style="dim",
        )


def _named(event: RecordedEvent) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "position": event.position,
        "type": event.type,
        "stream": event.stream,
        "version": event.version,
        "recorded_at": event.recorded_at,
    }


def _nested(node: Node) -> dict[str, Any]:
    return {**_named(node.event), "consequences": [_nested(child) for child in node.consequences]}
