"""Whatever happens to a ledger, in whatever order: money is conserved, and commands never overdraw."""

from datetime import UTC, datetime
from uuid import UUID

from events.contracts.ledger import (
    AccountPosted,
    AlertRaised,
    Direction,
    Movement,
    Platform,
    PostingDeferred,
    TransferCompleted,
    TransferRefused,
)
from events.contracts.registry import Event, contract_of, decode, encode
from events.envelope import new_id
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from ledger_transfer.accounts import record_fact
from ledger_transfer.facts import AccountReport
from ledger_transfer.projections.clearing import totals
from ledger_transfer.state import Decision, LedgerState, account_id_of, evolve, fold
from ledger_transfer.transfers import AccountNotFound, TransferRequest, transfer

USER = UUID(int=7)
AT = datetime(2026, 2, 12, 9, tzinfo=UTC)
PLATFORMS = st.sampled_from(["bfc", "vyomo"])
ACCOUNTS = st.sampled_from(["A", "B", "D"])
CURRENCIES = st.sampled_from(["INR", "INR", "INR", "USD"])
AMOUNTS = st.one_of(st.integers(1, 200), st.integers(1, 10**15))


class LedgerMachine(RuleBasedStateMachine):
    """Runs the pure deciders beside a model that only knows signed amounts per account."""

    def __init__(self) -> None:
        super().__init__()
        self.state = LedgerState()
        self.log: list[Event] = []
        self.model: dict[UUID, int] = {}

    def append(self, events: list[Event]) -> None:
        for event in events:
            contract = contract_of(event)
            stored = decode(contract.type, contract.schema_version, encode(event))
            assert stored == event
            self.state = evolve(self.state, stored)
            self.log.append(stored)
            for leg in getattr(event, "legs", ()):
                if ":" not in leg.account_id:
                    account_id = UUID(leg.account_id)
                    self.model[account_id] = self.model.get(account_id, 0) + leg.amount_minor

    @rule(platform=PLATFORMS, name=ACCOUNTS, currency=CURRENCIES, opening=st.integers(-500, 10**6))
    def account_reported(self, platform: Platform, name: str, currency: str, opening: int) -> None:
        report = AccountReport(
            platform=platform,
            platform_account_id=name,
            kind="savings" if platform == "bfc" else "trading_wallet",
            currency=currency,
            opening_balance_minor=opening,
            occurred_at=AT,
        )
        self.append(self.decided(self.state, report))

    @rule(
        platform=PLATFORMS,
        name=ACCOUNTS,
        direction=st.sampled_from(["credit", "debit"]),
        amount=AMOUNTS,
        currency=CURRENCIES,
        deposit=st.sampled_from([None, None, "FD"]),
    )
    def movement_reported(
        self,
        platform: Platform,
        name: str,
        direction: Direction,
        amount: int,
        currency: str,
        deposit: str | None,
    ) -> None:
        movement = self.movement(platform, name, direction, amount, currency, deposit)
        before = self.state
        events = self.decided(before, movement)
        self.append(events)
        account = before.accounts.get(account_id_of(USER, platform, name))
        if account is not None and deposit is None and account.currency == currency:
            # A fact is posted whatever the balance.
            assert type(events[0]) is AccountPosted
            assert all(type(event) is AlertRaised for event in events[1:])
            change = amount if direction == "credit" else -amount
            assert self.state.accounts[account.account_id].balance_minor == account.balance_minor + change

    @rule(name=ACCOUNTS, amount=st.integers(1, 1000), currency=CURRENCIES)
    def deposit_reported(self, name: str, amount: int, currency: str) -> None:
        report = AccountReport(
            platform="bfc",
            platform_account_id="FD",
            kind="fixed_deposit",
            currency=currency,
            opening_balance_minor=0,
            funding=self.movement("bfc", name, "debit", amount, currency, "FD"),
            occurred_at=AT,
        )
        self.append(self.decided(self.state, report))

    @rule(data=st.data(), amount=AMOUNTS, currency=CURRENCIES)
    def transfer_asked_for(self, data: st.DataObject, amount: int, currency: str) -> None:
        accounts = st.sampled_from([*self.state.accounts, UUID(int=1)])
        request = TransferRequest(
            transfer_id=new_id(),
            from_account_id=data.draw(accounts),
            to_account_id=data.draw(accounts),
            amount_minor=amount,
            currency=currency,
        )
        before = self.state
        try:
            [event] = transfer(before, request, AT)
        except AccountNotFound:
            assert {request.from_account_id, request.to_account_id} - set(before.accounts)
            return
        self.append([event])
        if isinstance(event, TransferRefused):
            assert self.state == before
            return
        assert isinstance(event, TransferCompleted)
        source = self.state.accounts[request.from_account_id]
        assert source.available_minor >= source.floor_minor
        changed = {
            account_id
            for account_id, account in self.state.accounts.items()
            if account.balance_minor != before.accounts[account_id].balance_minor
        }
        assert changed == {request.from_account_id, request.to_account_id}

    def decided(self, state: LedgerState, fact: AccountReport | Movement) -> list[Event]:
        decision = Decision(state, event_id=new_id(), now=AT)
        record_fact(decision, USER, fact)
        return decision.events

    def movement(
        self,
        platform: Platform,
        name: str,
        direction: Direction,
        amount: int,
        currency: str,
        deposit: str | None,
    ) -> Movement:
        return Movement(
            platform=platform,
            platform_account_id=name,
            direction=direction,
            amount_minor=amount,
            currency=currency,
            deposit_id=deposit,
            type="fixed_deposit" if deposit else "transaction",
            category="other",
            item_id="i",
            occurred_at=AT,
        )

    @invariant()
    def debits_equal_credits(self) -> None:
        for debits, credits_ in totals(self.log).values():
            assert debits == credits_

    @invariant()
    def balances_are_the_sum_of_their_legs(self) -> None:
        balances = {account.account_id: account.balance_minor for account in self.state.accounts.values()}
        assert balances == {account_id: self.model.get(account_id, 0) for account_id in balances}
        assert set(self.model) <= set(balances)

    @invariant()
    def what_waits_waits_for_an_account_that_is_not_there(self) -> None:
        assert not set(self.state.waiting) & set(self.state.accounts)
        deferred = sum(isinstance(event, PostingDeferred) for event in self.log)
        assert sum(len(chain.in_order()) for chain in self.state.waiting.values()) <= deferred

    def teardown(self) -> None:
        assert fold(self.log) == self.state


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
