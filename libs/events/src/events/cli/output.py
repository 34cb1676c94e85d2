"""What people and machines get to see. Stored text never reaches a terminal unescaped."""

import base64
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from events.envelope import RecordedEvent

_COLOURS = {
    "identity": "magenta",
    "banking": "blue",
    "trading": "cyan",
    "customer": "yellow",
    "ledger": "green",
    "wealth": "bright_blue",
    "notification": "bright_magenta",
    "sync": "bright_cyan",
}
"""By the event's publisher context."""

_PIPE_WIDTH = 240


def stdout() -> Console:
    """For results. As wide as it takes where nobody's terminal sets a width."""
    return _console(sys.stdout.isatty(), stderr=False)


def stderr() -> Console:
    """For progress and complaints."""
    return _console(sys.stderr.isatty(), stderr=True)


def _console(is_terminal: bool, *, stderr: bool) -> Console:
    return Console(stderr=stderr, highlight=False, markup=False, width=None if is_terminal else _PIPE_WIDTH)


def complain(message: str) -> None:
    """One line to standard error."""
    stderr().print(f"sangam: {printable(message)}", soft_wrap=True, style="red")


def print_json(document: object) -> None:
    """One document, one line, at once."""
    typer.echo(msgspec.json.encode(document))


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """A plain table; columns named in `right` are numbers."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", no_wrap=column in right)
    return made


def printable(text: str) -> str:
    """Without control characters, direction marks and the like, which could make a terminal lie."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_text(data: bytes) -> str:
    """Stored bytes for a terminal."""
    return printable(data.decode(errors="backslashreplace"))


def clock(moment: datetime) -> str:
    """UTC to the millisecond."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}Z"


def span(seconds: float | None) -> str:
    """A length of time, short."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} d"


def type_text(event_type: str) -> Text:
    """The type in its context's colour."""
    return Text(printable(event_type), style=_COLOURS.get(event_type.split(".", 1)[0], ""))


def event_line(event: RecordedEvent, *, with_data: bool = True, width: int = 9) -> Text:
    """One event on one line, payload as it is stored; the position right-aligned in `width`."""
    line = Text().append(f"{event.position or '–':>{width}}  ", style="bold")
    line.append(f"{clock(event.recorded_at)}  ", style="dim")
    line.append_text(type_text(event.type))
    line.append(f"  {printable(event.stream)}@{event.version}")
    if with_data:
        line.append(f"  {as_text(event.data)}", style="dim")
    return line


def cloud_event(event: RecordedEvent) -> dict[str, Any]:
    """The event as on the wire. Data that is not JSON any more goes as `data_base64`, as CloudEvents wants it."""
    attributes = event.cloud_event().attributes()
    try:
        return {**attributes, "data": msgspec.Raw(msgspec.json.format(event.data, indent=-1))}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {**attributes, "data_base64": base64.b64encode(event.data).decode()}
