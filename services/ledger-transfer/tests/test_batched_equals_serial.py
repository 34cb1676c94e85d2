"""The same commands one after the other and all at once: each stream is what deciding its commands in its own order
gives, and each answer is what deciding the command somewhere in that order gives.

All at once they are decided ahead of what is stored, appended in groups, and decided again where an append that they
were decided on turned out to be a repetition: retries, reused keys and tokens used twice are drawn, so that it does.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import UUID

import pytest
from events.contracts import banking, trading
from events.contracts.ledger import TransferCompleted, TransferHeld
from events.contracts.ledger_rules import BalanceBelow, Caps, RuleCreated, RuleTerms, ToTarget
from events.contracts.registry import Event
from events.decisions import Refusal
from events.envelope import Metadata, new_id
from events.store import EventIdReused, EventStore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keys_in_memory import texts
from ledger_transfer.allowances import NewLimits
from ledger_transfer.deciding import decide
from ledger_transfer.holds import HoldNotOpen, capture, void
from ledger_transfer.idempotency import capture_id_of, request_hash, transfer_id_of, void_id_of
from ledger_transfer.ledger import Ledger, TransferNotFound
from ledger_transfer.projections.clearing import totals
from ledger_transfer.reversals import NotReversible, reversal_id_of, reverse
from ledger_transfer.rule_terms import worst_case
from ledger_transfer.state import LedgerState, account_id_of, fold
from ledger_transfer.transfers import Clearance, StepUp, TransferRequest, transfer
from recording import recorded

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

AT = datetime(2026, 2, 26, 9, tzinfo=UTC)
NOBODY = Metadata(actor="test")
BANK, WALLET = 400_00, 100_00
DAILY = 500_00
THRESHOLD = 120_00
HOLD_S = 600


class Command(NamedTuple):
    """What a customer asks for. `key` names the transfer it makes, or is about."""

    kind: Literal["transfer", "hold", "capture", "void", "reverse"]
    key: int
    late: bool
    """Sent after the holds have expired, by the clock of the replica that got it."""
    amount: int
    back: bool
    """From the wallet to the bank."""
    token: str | None


COMMANDS = st.builds(
    Command,
    kind=st.sampled_from(["transfer", "transfer", "hold", "capture", "void", "reverse"]),
    key=st.integers(0, 5),
    late=st.sampled_from([False, False, False, True]),
    amount=st.sampled_from([10_00, 60_00, 90_00, 130_00, 300_00]),
    back=st.booleans(),
    token=st.sampled_from(["once", "other", None]),
)
BEFORE = (
    Command("transfer", 0, False, 60_00, False, None),
    Command("hold", 1, False, 90_00, False, None),
    Command("hold", 2, False, 60_00, True, None),
)
"""So that there is something to capture, void and reverse."""


class Answer(NamedTuple):
    """What a command came to."""

    command: Command
    events: tuple[Event, ...] = ()
    """The first ones of its append, or of the one that it repeats."""
    refusal: Exception | None = None
    """The refusal that wrote nothing."""
    replayed: bool = False


class Moment(NamedTuple):
    """The stream between two appends."""

    appends: Mapping[UUID, tuple[Event, ...]]
    """By their ids, those up to here."""
    state: LedgerState


class Customer:
    """Asks a ledger for commands, and knows what they should come to, by the pure deciders alone."""

    def __init__(self, ledger: Ledger, store: EventStore) -> None:
        self.ledger, self.store = ledger, store
        self.user_id = new_id()
        self.bank = account_id_of(self.user_id, "bfc", "SB1")
        self.wallet = account_id_of(self.user_id, "vyomo", "W1")
        self.answers: list[Answer] = []
        self.writers: dict[UUID, Answer] = {}
        """By the id of what they appended."""

    async def begin(self) -> None:
        common: dict[str, Any] = {"customer_id": "C", "occurred_at": AT, "currency": "INR"}
        for item in (
            banking.AccountOpened(item_id="1", account_id="SB1", kind="savings", opening_balance_minor=BANK, **common),
            trading.WalletOpened(item_id="2", wallet_id="W1", opening_balance_minor=WALLET, **common),
        ):
            await self.ledger.record(self.user_id, recorded(item))
        await self.ledger.change_limits(self.user_id, NewLimits(daily_minor=DAILY), None, NOBODY, AT)
        terms = RuleTerms(
            name="Top up",
            source_account_id=self.bank,
            target_account_id=self.wallet,
            currency="INR",
            trigger=BalanceBelow(threshold_minor=20_00),
            amount=ToTarget(target_minor=30_00),
            caps=Caps(per_day_minor=60_00, executions_per_day=3),
        )
        made = RuleCreated(rule_id=new_id(), terms=terms, worst_case=worst_case(terms), created_at=AT)
        await self.ledger.execute(
            self.user_id, lambda decision: decision.record(made), event_id=new_id(), metadata=NOBODY, now=AT
        )

    def request(self, command: Command) -> TransferRequest:
        ends = (self.wallet, self.bank) if command.back else (self.bank, self.wallet)
        return TransferRequest(
            transfer_id=self.transfer_id(command),
            from_account_id=ends[0],
            to_account_id=ends[1],
            amount_minor=command.amount,
            currency="INR",
            hold_s=HOLD_S if command.kind == "hold" else None,
        )

    def transfer_id(self, command: Command) -> UUID:
        return transfer_id_of(self.user_id, str(command.key))

    def clearance(self, command: Command) -> Clearance:
        request = self.request(command)
        token = command.token and StepUp(
            jti=command.token, amount_minor=command.amount, currency="INR", to_account_id=request.to_account_id
        )
        return Clearance(threshold_minor=THRESHOLD, step_up=token or None)

    async def ask(self, command: Command) -> None:
        transfer_id, now, event_id = self.transfer_id(command), now_of(command), self.event_id(command)
        try:
            match command.kind:
                case "transfer" | "hold":
                    event, replayed = await self.ledger.transfer(
                        self.user_id, self.request(command), NOBODY, now, self.clearance(command)
                    )
                    answer = Answer(command, (event,), replayed=replayed)
                case "capture":
                    captured = await self.ledger.capture(self.user_id, transfer_id, command.amount, NOBODY, now)
                    answer = Answer(command, captured.events, replayed=captured.replayed)
                case "void":
                    voided = await self.ledger.void(self.user_id, transfer_id, NOBODY, now)
                    answer = Answer(command, voided.events, replayed=voided.replayed)
                case "reverse":
                    taken_back = await self.ledger.reverse(self.user_id, transfer_id, NOBODY, now)
                    answer = Answer(command, taken_back.events, replayed=taken_back.replayed)
        except (Refusal, EventIdReused) as refusal:
            answer = Answer(command, refusal=refusal)
        self.answers.append(answer)
        if answer.events and not answer.replayed:
            assert event_id not in self.writers, "two requests say that they wrote the same"
            self.writers[event_id] = answer

    def event_id(self, command: Command) -> UUID:
        named = {"capture": capture_id_of, "void": void_id_of, "reverse": reversal_id_of}.get(command.kind)
        return named(self.transfer_id(command)) if named else self.transfer_id(command)

    async def moments(self) -> list[Moment]:
        """The stream, from after `begin` on, append by append."""
        events = await self.store.read_stream(f"ledger-{self.user_id}")
        starts = [n for n, event in enumerate(events) if event.event_id in self.writers]
        found = [Moment({}, fold([event.payload for event in events[: starts[0]]]))]
        for first, end in zip(starts, [*starts[1:], len(events)], strict=True):
            written = tuple(event.payload for event in events[first:end])
            now = found[-1]
            found.append(Moment({**now.appends, events[first].event_id: written}, fold(written, now.state)))
        return found

    def expected(self, command: Command, at: Moment) -> Answer:
        """What the command comes to at that moment, decided by the pure deciders."""
        event_id = self.event_id(command)
        try:
            step = self._step(command, at)
            if event_id in at.appends:
                return Answer(command, at.appends[event_id], replayed=True)
            foreseen = decide(
                at.state, event_id, now_of(command), lambda decision: decision.record(*step(decision.state))
            )
            assert foreseen.state == fold(foreseen.events, at.state)
            return Answer(command, foreseen.events)
        except (Refusal, EventIdReused) as refusal:
            return Answer(command, refusal=refusal)

    def _step(self, command: Command, at: Moment) -> Callable[[LedgerState], list[Event]]:
        transfer_id, now, amount = self.transfer_id(command), now_of(command), command.amount
        first = at.appends[transfer_id][0] if transfer_id in at.appends else None
        if command.kind in ("transfer", "hold"):
            request, clearance = self.request(command), self.clearance(command)
            if first and request_hash(self.request(self.writers[transfer_id].command)) != request_hash(request):
                raise EventIdReused(transfer_id)
            return lambda state: transfer(state, request, now, clearance)
        if first is None:
            raise TransferNotFound()
        captured = at.appends.get(capture_id_of(transfer_id), ())[:2]
        if command.kind == "reverse":
            moved = next((event for event in (first, *captured) if isinstance(event, TransferCompleted)), None)
            if moved is None:
                raise NotReversible()
            consumed_at = first.held_at if isinstance(first, TransferHeld) else moved.completed_at
            return lambda state: reverse(state, moved, consumed_at, now)
        if not isinstance(first, TransferHeld):
            raise HoldNotOpen()
        if command.kind == "void":
            return lambda state: void(state, transfer_id, now)
        if captured and self.writers[capture_id_of(transfer_id)].command.amount != amount:
            raise HoldNotOpen()
        return lambda state: capture(state, transfer_id, amount, now)


def now_of(command: Command) -> datetime:
    return AT + timedelta(seconds=HOLD_S if command.late else 0)


def same(answer: Answer, expected: Answer) -> bool:
    if answer.refusal is not None or expected.refusal is not None:
        return type(answer.refusal) is type(expected.refusal) and vars(answer.refusal) == vars(expected.refusal)
    # The route of a transfer answers with the transfer alone, whatever rules made of it.
    whole = len(answer.events) if answer.command.kind in ("transfer", "hold") else None
    return (answer.events, answer.replayed) == (expected.events[:whole], expected.replayed)


async def check(customer: Customer, *, in_order: bool) -> None:
    moments = await customer.moments()
    assert len(moments) == len(customer.writers) + 1
    for before, after in pairwise(moments):
        [event_id] = after.appends.keys() - before.appends.keys()
        wrote = customer.writers[event_id]
        expected = customer.expected(wrote.command, before)
        assert (after.appends[event_id], False) == (expected.events, expected.replayed)
        assert same(wrote, expected)
    so_far = 0
    for answer in customer.answers:
        one_by_one = in_order or so_far < len(BEFORE)
        possible = [moments[so_far]] if one_by_one else moments[len(BEFORE) :]
        assert any(same(answer, customer.expected(answer.command, moment)) for moment in possible), answer
        so_far += answer is customer.writers.get(customer.event_id(answer.command))
    assert await customer.ledger.state(customer.user_id) == moments[-1].state
    assert await Ledger(customer.store, texts()).state(customer.user_id) == moments[-1].state
    for debits, credits_ in totals(await customer.ledger.history(customer.user_id)).values():
        assert debits == credits_


def test_all_at_once_is_one_after_the_other_in_some_order(cell: "Cell") -> None:
    with asyncio.Runner() as runner:
        store = runner.run(EventStore.connect(cell.store_url("ledger_transfer")))
        ledger = Ledger(store, texts())

        async def both(commands: Sequence[Command]) -> None:
            serial, batched = Customer(ledger, store), Customer(ledger, store)
            for customer in (serial, batched):
                await customer.begin()
                for command in BEFORE:
                    await customer.ask(command)
            for command in commands:
                await serial.ask(command)
            await asyncio.gather(*(batched.ask(command) for command in commands))
            await check(serial, in_order=True)
            await check(batched, in_order=False)

        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.lists(COMMANDS, min_size=4, max_size=20))
        def run(commands: list[Command]) -> None:
            runner.run(both(commands))

        run()
        runner.run(store.close())


@pytest.mark.parametrize("kind", ["transfer", "hold", "capture", "void", "reverse"])
async def test_a_request_sent_twice_at_once_gets_one_answer_twice(cell: "Cell", kind: Any) -> None:
    """The second is decided on what the first will leave: a token that is used, a hold that is not open any more."""
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    customer = Customer(Ledger(store, texts()), store)
    await customer.begin()
    for command in BEFORE:
        await customer.ask(command)
    key = {"capture": 1, "void": 1, "reverse": 0}.get(kind, 9)
    wanted = Command(kind, key, False, 60_00 if kind == "capture" else 130_00, False, "once")
    await asyncio.gather(customer.ask(wanted), customer.ask(wanted))
    await store.close()
    first, second = sorted(customer.answers[len(BEFORE) :], key=lambda answer: answer.replayed)
    assert (first.refusal, second.refusal) == (None, None)
    assert (first.events, first.replayed, second.replayed) == (second.events, False, True)
