"""What people type: type patterns, lengths of time, and where to begin."""

import re
from datetime import UTC, datetime, timedelta

import typer

from events.patterns import type_regex

__all__ = ["duration", "since", "type_regex"]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def duration(text: str) -> timedelta:
    """`90s`, `15m`, `2h`, `7d`, `1w`.

    Raises:
        typer.BadParameter: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a length of time; write 90s, 15m, 2h or 7d")
    try:
        return timedelta(**{_UNITS[match[2]]: float(match[1])})
    except OverflowError as error:
        raise typer.BadParameter(f"{text!r} is too long") from error


def since(text: str, now: datetime) -> int | datetime:
    """A position, a moment, or how long ago. A time without an offset is UTC.

    Raises:
        typer.BadParameter: it is none of these.
    """
    if text.isascii() and text.isdigit():
        return int(text)
    if re.fullmatch(r"[\d.]+[smhdw]", text):
        try:
            return now - duration(text)
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is neither a position (1200), nor a time (2026-02-12T09:00:00Z), nor an age (15m)"
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
