"""Net worth, flows and XIRR a second time: straight from the log, event by event, slow and obvious.

It shares no code with the service: it knows the contracts and the definitions of `docs/decisions/0034`.
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from uuid import UUID

from events.envelope import RecordedEvent


def by_customer(log: Iterable[RecordedEvent]) -> dict[UUID, list[RecordedEvent]]:
    """Each customer's own events, in log order."""
    owner: dict[str, UUID] = {}
    found: dict[UUID, list[RecordedEvent]] = defaultdict(list)
    for event in log:
        payload: Any = event.payload
        if event.type == "identity.user.link_confirmed":
            assert event.subject is not None
            owner[payload.platform_stream] = event.subject
        elif event.type.startswith("ledger."):
            assert event.subject is not None
            found[event.subject].append(event)
        else:
            found[owner[event.stream]].append(event)
    return found


def fund_value(payload: Any) -> int:
    exact = Decimal(payload.units) * Decimal(payload.nav) * 100
    return int(exact.to_integral_value(rounding=ROUND_HALF_UP))


def net_worth(events: Iterable[RecordedEvent], until: datetime) -> int:
    """Everything owned less everything owed, counting what happened up to `until`."""
    total = 0
    latest: dict[tuple[str, str], tuple[datetime, int, int]] = {}

    def state(kind: str, name: str, event: RecordedEvent, at: datetime, value: int) -> None:
        known = latest.get((kind, name))
        if known is None or (at, event.position) >= known[:2]:
            latest[kind, name] = (at, event.position, value)

    for event in events:
        payload: Any = event.payload
        at = getattr(payload, "occurred_at", None)
        if at is None or at > until:
            continue
        if event.type in ("ledger.account.opened", "ledger.account.posted"):
            total += sum(
                leg.amount_minor for leg in payload.legs if not leg.account_id.startswith(("opening", "clear"))
            )
        elif event.type.startswith("banking.loan."):
            state("loan", payload.loan_id, event, at, -payload.outstanding_minor)
        elif event.type == "banking.fund.changed":
            state("fund", payload.scheme_code, event, at, fund_value(payload))
        elif event.type == "trading.position.changed":
            is_future = payload.instrument == "future"
            value = payload.unrealized_pnl_minor if is_future else payload.quantity * payload.mark_price_minor
            state("position", payload.position_id, event, at, value)
    return total + sum(value for _, _, value in latest.values())


def day_of(at: datetime) -> date:
    return (at + timedelta(hours=5, minutes=30)).date()


def flows(events: Iterable[RecordedEvent]) -> dict[date, int]:
    """What came in from outside (positive) or went out, by day in India."""
    found: dict[date, int] = defaultdict(int)
    emi = 0
    fund_cost: dict[str, int] = {}
    for event in sorted(
        (e for e in events if hasattr(e.payload, "occurred_at")),
        key=lambda e: (e.payload.occurred_at, e.position),  # type: ignore[attr-defined]
    ):
        payload: Any = event.payload
        day = day_of(payload.occurred_at)
        if event.type == "ledger.account.opened":
            found[day] += sum(leg.amount_minor for leg in payload.legs if not leg.account_id.startswith("opening"))
        elif event.type == "ledger.account.posted" and payload.type == "fixed_deposit":
            pass  # from one pocket to the other; what comes back on top is gain
        elif event.type == "ledger.account.posted":
            moved = sum(leg.amount_minor for leg in payload.legs if not leg.account_id.startswith("clearing"))
            if payload.category not in ("interest", "charges", "trade"):
                found[day] += moved
            if payload.category == "emi":
                emi -= moved
        elif event.type == "banking.loan.opened":
            found[day] -= payload.outstanding_minor
        elif event.type == "banking.loan.changed":
            found[day] += emi  # the instalment did not leave: it went into the loan
            emi = 0
        elif event.type == "banking.fund.changed":
            before = fund_cost.get(payload.scheme_code)
            found[day] += fund_value(payload) if before is None else payload.cost_minor - before
            fund_cost[payload.scheme_code] = payload.cost_minor
    return found


def irr(dated: list[tuple[date, int]]) -> float | None:
    """The annual rate at which the flows are worth nothing, by halving; None where the ends have one sign."""
    first = dated[0][0]

    def worth(rate: float) -> float:
        total = 0.0
        for day, amount in dated:
            total += amount * float((1 + rate) ** (-(day - first).days / 365))
        return total

    low, high = -0.99, 100.0
    if (worth(low) > 0) == (worth(high) > 0):
        return None
    rising = worth(high) > 0
    for _ in range(200):
        middle = (low + high) / 2
        if (worth(middle) > 0) == rising:
            high = middle
        else:
            low = middle
    return (low + high) / 2
