"""Events of every kind that the table of rules knows, and facts made of them."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import msgspec
from events.contracts import contract_of
from events.contracts.describe import example
from events.contracts.registry import Event
from notifier.rules import Fact, fact_of

AT = datetime(2026, 2, 12, 9, 0, tzinfo=UTC)
USER = UUID("01900000-0000-7000-8000-00000000000a")
_NAMES = UUID("5b0f4a7e-0000-5000-8000-000000000001")


def number(n: int) -> UUID:
    return uuid5(_NAMES, str(n))


def example_of(struct: type[Event]) -> Event:
    """An event as the catalogue of contracts shows it."""
    return msgspec.convert(example(struct, full=True), struct, strict=False)


def fact(event: Event, *, n: int = 1, at: datetime = AT) -> Fact:
    found = fact_of(contract_of(event).type, event, event_id=number(n), position=n, recorded_at=at)
    assert found is not None
    return found


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def changed(event: Any, **values: Any) -> Any:
    return msgspec.structs.replace(event, **values)
