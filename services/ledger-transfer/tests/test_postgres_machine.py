"""Two replicas of the ledger on a real event store, beside a model that knows nothing of streams, versions or caches.

After every step the stored stream, folded afresh, must be what the model says: balances, holds, what is used of the
limits. So a refusal leaves no trace, a retry gets its first answer whatever has changed since, and no stale cache
ever overdraws an account or refuses money that is there.
"""

import asyncio
import contextlib
from collections.abc import Coroutine
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from events.contracts import banking, trading
from events.contracts.ledger import TransferCompleted, TransferHeld, TransferRefused
from events.contracts.registry import Event
from events.envelope import Metadata, new_id
from events.store import EventStore
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from keys_in_memory import texts
from ledger_transfer.allowances import NewLimits
from ledger_transfer.bulk import BulkRequest
from ledger_transfer.holds import HoldNotOpen
from ledger_transfer.idempotency import transfer_id_of
from ledger_transfer.ledger import Ledger
from ledger_transfer.limits import UNUSED, standings
from ledger_transfer.projections.clearing import totals
from ledger_transfer.reversals import NotReversible
from ledger_transfer.state import account_id_of, evolve, fold
from ledger_transfer.transfers import TransferRefusal, TransferRequest
from recording import recorded

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

INDIA = ZoneInfo("Asia/Kolkata")
NOBODY = Metadata(actor="test")
DAILY, WEEKLY, MONTHLY = 300_00, 500_00, 900_00
AMOUNTS = st.one_of(st.integers(1, 60_00), st.sampled_from([100_00, 250_00, 300_00, 300_01]))
ENDS = st.sampled_from([("bank", "wallet"), ("wallet", "bank")])
REPLICA = st.integers(0, 1)

T = TypeVar("T")


class Held(NamedTuple):
    source: str
    target: str
    amount: int
    held_at: datetime
    expires_at: datetime


class Model:
    """What a customer's money should be: a few sums over lists, in the words of the product."""

    def __init__(self) -> None:
        self.now = datetime(2026, 2, 26, 17, tzinfo=UTC)
        self.balances = {"bank": 0, "wallet": 0}
        self.holds: dict[UUID, Held] = {}
        self.used: list[tuple[datetime, int]] = []
        self.limits = [DAILY, WEEKLY, MONTHLY]

    def expire(self) -> None:
        for transfer_id, held in list(self.holds.items()):
            if held.expires_at <= self.now:
                del self.holds[transfer_id]
                self.used.append((held.held_at, -held.amount))

    def available(self, name: str) -> int:
        return self.balances[name] - sum(held.amount for held in self.holds.values() if held.source == name)

    def used_now(self) -> list[int]:
        def windows(at: datetime) -> tuple[date, tuple[int, int], tuple[int, int]]:
            day = at.astimezone(INDIA).date()
            return day, day.isocalendar()[:2], (day.year, day.month)

        now = windows(self.now)
        return [sum(amount for at, amount in self.used if windows(at)[n] == now[n]) for n in range(3)]

    def refusal(self, source: str, amount: int) -> str | None:
        if amount > self.available(source):
            return "insufficient_funds"
        if any(used + amount > limit for used, limit in zip(self.used_now(), self.limits, strict=True)):
            return "limit_exceeded"
        return None

    def move(self, source: str, target: str, amount: int) -> None:
        self.balances[source] -= amount
        self.balances[target] += amount


class Money(RuleBasedStateMachine):
    """One customer per run, on stores that all runs share."""

    runner: asyncio.Runner
    ledgers: tuple[Ledger, Ledger]
    store: EventStore

    def __init__(self) -> None:
        super().__init__()
        self.user_id = new_id()
        self.model = Model()
        self.ids = {
            "bank": account_id_of(self.user_id, "bfc", "SB1"),
            "wallet": account_id_of(self.user_id, "vyomo", "W1"),
        }
        self.answers: dict[str, tuple[TransferRequest, Event]] = {}
        self.completed: dict[UUID, tuple[str, str, int, datetime]] = {}
        self.reversed: set[UUID] = set()

    def run_(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    @initialize(bank=st.integers(0, 500_00), wallet=st.integers(0, 100_00))
    def opened(self, bank: int, wallet: int) -> None:
        common: dict[str, Any] = {"customer_id": "C", "occurred_at": self.model.now, "currency": "INR"}
        for item in (
            banking.AccountOpened(item_id="1", account_id="SB1", kind="savings", opening_balance_minor=bank, **common),
            trading.WalletOpened(item_id="2", wallet_id="W1", opening_balance_minor=wallet, **common),
        ):
            self.run_(self.ledgers[0].record(self.user_id, recorded(item)))
        self.run_(
            self.ledgers[1].change_limits(
                self.user_id,
                NewLimits(daily_minor=DAILY, weekly_minor=WEEKLY, monthly_minor=MONTHLY),
                None,
                NOBODY,
                self.model.now,
            )
        )
        self.model.balances = {"bank": bank, "wallet": wallet}

    def request(self, ends: tuple[str, str], amount: int, key: str, hold_s: int | None = None) -> TransferRequest:
        return TransferRequest(
            transfer_id=transfer_id_of(self.user_id, key),
            from_account_id=self.ids[ends[0]],
            to_account_id=self.ids[ends[1]],
            amount_minor=amount,
            currency="INR",
            hold_s=hold_s,
        )

    def ask(self, replica: int, request: TransferRequest) -> tuple[Event, bool]:
        return self.run_(self.ledgers[replica].transfer(self.user_id, request, NOBODY, self.model.now))

    def check_answer(self, event: Event, ends: tuple[str, str], amount: int) -> None:
        expected = self.model.refusal(ends[0], amount)
        if isinstance(event, TransferRefused):
            assert event.code == expected
            return
        assert expected is None
        assert isinstance(event, TransferCompleted | TransferHeld)
        if isinstance(event, TransferHeld):
            self.model.holds[event.transfer_id] = Held(*ends, amount, event.held_at, event.expires_at)
        else:
            self.model.move(*ends, amount)
            self.completed[event.transfer_id] = (*ends, amount, event.completed_at)
        self.model.used.append((self.model.now, amount))

    @rule(replica=REPLICA, ends=ENDS, amount=AMOUNTS, hold_s=st.sampled_from([None, None, 600, 90_000]))
    def transfer(self, replica: int, ends: tuple[str, str], amount: int, hold_s: int | None) -> None:
        self.model.expire()
        key = f"k{len(self.answers)}"
        request = self.request(ends, amount, key, hold_s)
        event, replayed = self.ask(replica, request)
        assert not replayed
        self.answers[key] = (request, event)
        self.check_answer(event, ends, amount)

    @rule(replica=REPLICA, data=st.data())
    def a_lost_response_is_asked_for_again(self, replica: int, data: st.DataObject) -> None:
        if not self.answers:
            return
        request, first = self.answers[data.draw(st.sampled_from(sorted(self.answers)))]
        assert self.ask(replica, request) == (first, True)

    @rule(replica=REPLICA, name=st.sampled_from(["bank", "wallet"]), amount=st.integers(-80_00, 80_00).filter(bool))
    def platform_reports(self, replica: int, name: str, amount: int) -> None:
        self.model.expire()
        common: dict[str, Any] = {
            "item_id": "3",
            "customer_id": "C",
            "occurred_at": self.model.now,
            "direction": "credit" if amount > 0 else "debit",
            "amount_minor": abs(amount),
            "currency": "INR",
        }
        item: Event = (
            banking.TransactionPosted(transaction_id="T", account_id="SB1", category="other", **common)
            if name == "bank"
            else trading.WalletPosted(movement_id="M", wallet_id="W1", reason="other", **common)
        )
        self.run_(self.ledgers[replica].record(self.user_id, recorded(item), self.model.now))
        self.model.balances[name] += amount

    @rule(replica=REPLICA, data=st.data(), part=st.integers(1, 100))
    def capture(self, replica: int, data: st.DataObject, part: int) -> None:
        self.model.expire()
        held_ids = [event.transfer_id for _, event in self.answers.values() if isinstance(event, TransferHeld)]
        if not held_ids:
            return
        transfer_id = data.draw(st.sampled_from(held_ids))
        held = self.model.holds.get(transfer_id)
        amount = max(1, held.amount * part // 100) if held else 1
        capturing = self.ledgers[replica].capture(self.user_id, transfer_id, amount, NOBODY, self.model.now)
        if held is None:
            # Captured (by another amount or this one), voided or expired.
            with contextlib.suppress(HoldNotOpen):
                assert self.run_(capturing).replayed
            return
        if amount > self.model.available(held.source) + held.amount:
            with pytest.raises(TransferRefusal):  # a platform's fact took the money
                self.run_(capturing)
            return
        outcome = self.run_(capturing)
        assert not outcome.replayed
        del self.model.holds[transfer_id]
        self.model.used.append((held.held_at, amount - held.amount))
        self.model.move(held.source, held.target, amount)
        self.completed[transfer_id] = (held.source, held.target, amount, held.held_at)

    @rule(replica=REPLICA, data=st.data())
    def void(self, replica: int, data: st.DataObject) -> None:
        self.model.expire()
        if not self.model.holds:
            return
        transfer_id = data.draw(st.sampled_from(sorted(self.model.holds)))
        self.run_(self.ledgers[replica].void(self.user_id, transfer_id, NOBODY, self.model.now))
        held = self.model.holds.pop(transfer_id)
        self.model.used.append((held.held_at, -held.amount))

    @rule(replica=REPLICA, data=st.data())
    def reverse(self, replica: int, data: st.DataObject) -> None:
        self.model.expire()
        if not self.completed:
            return
        transfer_id = data.draw(st.sampled_from(sorted(self.completed)))
        source, target, amount, consumed_at = self.completed[transfer_id]
        reversing = self.ledgers[replica].reverse(self.user_id, transfer_id, NOBODY, self.model.now)
        if transfer_id in self.reversed:
            assert self.run_(reversing).replayed
        elif amount > self.model.available(target):
            with pytest.raises(TransferRefusal):
                self.run_(reversing)
        else:
            outcome = self.run_(reversing)
            self.reversed.add(transfer_id)
            self.model.move(target, source, amount)
            self.model.used.append((consumed_at, -amount))
            again = self.ledgers[replica].reverse(self.user_id, outcome.event_id, NOBODY, self.model.now)
            with pytest.raises(NotReversible):
                self.run_(again)

    @rule(
        replica=REPLICA,
        mode=st.sampled_from(["all_or_nothing", "independent"]),
        items=st.lists(st.tuples(ENDS, AMOUNTS), min_size=1, max_size=5),
    )
    def bulk(self, replica: int, mode: Any, items: list[tuple[tuple[str, str], int]]) -> None:
        self.model.expire()
        bulk_id = new_id()
        requests = tuple(self.request(ends, amount, "") for ends, amount in items)
        outcome = self.run_(
            self.ledgers[replica].bulk(
                self.user_id, BulkRequest(bulk_id=bulk_id, mode=mode, items=requests), NOBODY, self.model.now
            )
        )
        if mode == "all_or_nothing" and isinstance(outcome.events[0], TransferRefused):
            trial = Model()
            trial.__dict__.update(self.model.__dict__)
            trial.balances, trial.used = dict(self.model.balances), list(self.model.used)
            for ends, amount in items:
                if (code := trial.refusal(ends[0], amount)) is not None:
                    assert [event.code for event in outcome.events if isinstance(event, TransferRefused)] == [code]
                    return
                trial.move(*ends, amount)
                trial.used.append((trial.now, amount))
            raise AssertionError("nothing forbade it")
        assert len(outcome.events) == len(items)
        for event, (ends, amount) in zip(outcome.events, items, strict=True):
            self.check_answer(event, ends, amount)

    @rule(requests=st.lists(st.tuples(REPLICA, ENDS, st.integers(1, 40_00)), min_size=2, max_size=8))
    def many_at_once(self, requests: list[tuple[int, tuple[str, str], int]]) -> None:
        """On both replicas: in whatever order they take effect, each is right where it stands in the stream."""
        self.model.expire()
        keys = [f"k{len(self.answers) + n}" for n in range(len(requests))]
        asked = [self.request(ends, amount, key) for key, (_, ends, amount) in zip(keys, requests, strict=True)]

        async def race() -> None:
            await asyncio.gather(
                *(
                    self.ledgers[replica].transfer(self.user_id, request, NOBODY, self.model.now)
                    for (replica, _, _), request in zip(requests, asked, strict=True)
                )
            )

        self.run_(race())
        events = self.run_(self.store.read_stream(f"ledger-{self.user_id}"))
        by_id = {request.transfer_id: n for n, request in enumerate(asked)}
        stored = [event.payload for event in events if event.event_id in by_id]
        assert len(stored) == len(requests)
        for event in stored:
            assert isinstance(event, TransferCompleted | TransferRefused)
            n = by_id[event.transfer_id]
            self.answers[keys[n]] = (asked[n], event)
            self.check_answer(event, requests[n][1], requests[n][2])

    @rule(replica=REPLICA, share=st.integers(50, 100))
    def lower_limits(self, replica: int, share: int) -> None:
        self.model.expire()
        wanted = [limit * share // 100 for limit in self.model.limits]
        self.run_(
            self.ledgers[replica].change_limits(
                self.user_id,
                NewLimits(daily_minor=wanted[0], weekly_minor=wanted[1], monthly_minor=wanted[2]),
                None,
                NOBODY,
                self.model.now,
            )
        )
        self.model.limits = wanted

    @rule(by=st.sampled_from([timedelta(minutes=11), timedelta(hours=7), timedelta(days=2), timedelta(days=9)]))
    def time_passes(self, by: timedelta) -> None:
        self.model.now += by

    @invariant()
    def the_stored_stream_is_what_the_model_says(self) -> None:
        events = [event.payload for event in self.run_(self.store.read_stream(f"ledger-{self.user_id}"))]
        if not events:
            return
        state = fold(events)
        self.model.expire()
        balances = {name: state.accounts[account_id].balance_minor for name, account_id in self.ids.items()}
        assert balances == self.model.balances
        open_holds = {key: hold for key, hold in state.holds.items() if hold.expires_at > self.model.now}
        assert set(open_holds) == set(self.model.holds)
        for debits, credits_ in totals(events).values():
            assert debits == credits_
        now = self.run_(self.ledgers[0].preview(self.user_id, self.model.now))
        used = [standing.used_minor for standing in standings(now.limits, now.usage.get("INR", UNUSED), self.model.now)]
        assert used == self.model.used_now()
        for name, account_id in self.ids.items():
            assert now.accounts[account_id].available_minor == self.model.available(name)

    @invariant()
    def no_command_takes_what_is_held_or_not_there(self) -> None:
        state = fold([])
        for event in self.run_(self.store.read_stream(f"ledger-{self.user_id}")):
            state = evolve(state, event.payload)
            if isinstance(event.payload, TransferCompleted):
                assert state.accounts[event.payload.from_account_id].balance_minor >= 0


def test_two_replicas_and_a_model_agree_after_every_step(cell: "Cell") -> None:
    url = cell.store_url("ledger_transfer")
    with asyncio.Runner() as runner:
        stores = [runner.run(EventStore.connect(url)) for _ in range(2)]
        Money.runner, Money.store = runner, stores[0]
        Money.ledgers = (Ledger(stores[0], texts()), Ledger(stores[1], texts()))
        run_state_machine_as_test(
            Money,
            settings=settings(
                max_examples=3,
                stateful_step_count=20,
                derandomize=True,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        for store in stores:
            runner.run(store.close())
