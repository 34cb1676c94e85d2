"""A ledger's state survives being kept as a snapshot: every part of it, to the type."""

from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from events.contracts.describe import example
from events.contracts.ledger import Movement
from events.envelope import new_id
from ledger_transfer.limits import Limits, Usage, Windows
from ledger_transfer.rulebook import Moved, Rule, RuleBook
from ledger_transfer.state import Account, Hold, LedgerState, Waiting

S = TypeVar("S", bound=msgspec.Struct)


def _some(struct: type[S]) -> S:
    return msgspec.convert(example(struct, full=False), struct, strict=False)


def test_a_state_with_everything_in_it_comes_back_as_it_was() -> None:
    state = LedgerState(
        accounts={new_id(): _some(Account)},
        waiting={new_id(): Waiting(_some(Movement), Waiting(_some(Movement), None))},
        holds={new_id(): _some(Hold)},
        usage={"INR": Usage(Windows(20_496, 20_493, 24_313), 1, 2, 3)},
        limits=Limits(daily_minor=1, weekly_minor=2, monthly_minor=3),
        step_ups={"jti": datetime(2026, 2, 12, 9, tzinfo=UTC)},
        rules=RuleBook(rules={new_id(): msgspec.structs.replace(_some(Rule), moved=Moved(1, 2, 3, 4, 5))}),
    )
    default = LedgerState()
    for name in LedgerState.__struct_fields__:
        assert getattr(state, name) != getattr(default, name), f"{name} is not tried"
    back = msgspec.json.Decoder(LedgerState).decode(msgspec.json.encode(state))
    assert back == state
    assert isinstance(next(iter(back.waiting.values())), Waiting)
