"""Sealed texts on their way to consumers: opened in payload and bytes, absent where they may not be read."""

import base64
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from events.contracts import encode, identity, ledger, ledger_rules, registered
from events.contracts.registry import Event
from events.envelope import RecordedEvent, new_id
from events.sealing import SealBroken, SubjectErased
from events.texts import NAMES, Texts
from recording import recorded

AT = datetime(2026, 2, 12, 9, tzinfo=UTC)
ASHA, RAVI = new_id(), new_id()


class _Keys:
    """Counts look-ups; hides the text, and no more."""

    def __init__(self) -> None:
        self.erased: set[UUID] = set()
        self.looked_up: list[set[UUID]] = []

    async def seal(self, subject: UUID, text: str, place: str) -> str:
        if subject in self.erased:
            raise SubjectErased
        return base64.b64encode(f"{subject}{place}{text}".encode()).decode()

    async def open(self, subject: UUID, sealed: str, place: str) -> str | None:
        if subject in self.erased:
            return None
        text = base64.b64decode(sealed).decode()
        if not text.startswith(f"{subject}{place}"):
            raise SealBroken
        return text.removeprefix(f"{subject}{place}")

    async def fetch(self, subjects: Collection[UUID]) -> None:
        self.looked_up.append(set(subjects))

    def bury(self, subject: UUID) -> None:
        self.erased.add(subject)


def _movement(**texts: Any) -> ledger.Movement:
    return ledger.Movement(
        platform="bfc",
        platform_account_id="SB1",
        direction="credit",
        amount_minor=1,
        currency="INR",
        type="transaction",
        category="other",
        item_id="1",
        occurred_at=AT,
        **texts,
    )


def _posted(**texts: Any) -> ledger.AccountPosted:
    return ledger.AccountPosted(
        account_id=new_id(),
        platform="bfc",
        legs=(),
        type="transaction",
        category="other",
        item_id="1",
        occurred_at=AT,
        **texts,
    )


def _recorded(payload: Event, user: UUID = ASHA, category: str = "ledger") -> RecordedEvent:
    return recorded(payload, stream=f"{category}-{user}", subject=user)


async def test_texts_are_opened_for_consumers_wherever_they_are() -> None:
    keys = _Keys()
    texts = Texts(keys)
    clear = _posted(memo="to the clinic", counterparty='Dr "Rao"', reference='memo":null')
    sealed = await texts.sealed(ASHA, clear)
    assert (sealed.memo, sealed.counterparty, sealed.reference) == (None, None, None)
    deferred = ledger.PostingDeferred(
        account_id=new_id(), movement=await texts.sealed(RAVI, _movement(memo="for Ravi"))
    )
    other = ledger.SyncRequested(sync_id=new_id(), platforms=(), requested_at=AT)
    stored = [_recorded(sealed), _recorded(deferred, RAVI), _recorded(other), _recorded(_posted())]
    assert all(b"clinic" not in event.data and b"for Ravi" not in event.data for event in stored)
    opened = await texts.open_events(stored)
    assert opened[0].payload == clear
    assert opened[0].data == encode(clear)
    assert opened[0].as_stored is stored[0]
    assert getattr(opened[1].payload, "movement").memo == "for Ravi"  # noqa: B009 - for mypy
    assert opened[2:] == stored[2:]
    assert keys.looked_up == [{ASHA, RAVI}], "all keys of a chunk at once"
    assert await texts.open_events(opened) == opened


async def test_behind_an_erasure_nothing_is_opened_though_the_key_is_still_there() -> None:
    texts = Texts(_Keys())
    before, after = [_recorded(await texts.sealed(ASHA, _posted(memo=memo))) for memo in ("before", "after")]
    erased = identity.UserErased(user_id=ASHA, erased_at=AT)
    opened = await texts.open_events([before, _recorded(erased, category="user"), after])
    assert [getattr(event.payload, "memo", "") for event in opened] == ["before", "", None]
    again = await texts.sealed(ASHA, _posted(memo="again"))
    assert (again.memo, again.sealed_texts) == (None, None), "neither sealed nor in the clear"


async def test_a_text_that_was_tampered_with_is_absent_and_an_error_to_who_asks_for_it() -> None:
    texts = Texts(_Keys())
    of_ravi = await texts.sealed(RAVI, _posted(memo="for Ravi"))
    [event] = await texts.open_events([_recorded(of_ravi, ASHA)])
    assert isinstance(event.payload, ledger.AccountPosted)
    assert event.payload.memo is None
    with pytest.raises(SealBroken):
        await texts.opened(ASHA, of_ravi)


def _terms(**texts: Any) -> ledger_rules.RuleTerms:
    return ledger_rules.RuleTerms(
        source_account_id=new_id(),
        target_account_id=new_id(),
        currency="INR",
        trigger=ledger_rules.BalanceBelow(threshold_minor=1),
        amount=ledger_rules.FixedAmount(amount_minor=1),
        **texts,
    )


async def test_a_rule_s_name_is_sealed_once_for_all_that_is_made_of_it() -> None:
    keys = _Keys()
    texts = Texts(keys)
    clear = _terms(name="For the divorce")
    terms = await texts.sealed(ASHA, clear, memo=clear.name)
    assert terms.name == ""
    nothing = ledger_rules.WorstCase(per_day_minor=1, per_week_minor=1, per_month_minor=1)
    created = ledger_rules.RuleCreated(rule_id=new_id(), terms=terms, worst_case=nothing, created_at=AT)
    skipped = ledger_rules.RuleSkipped(
        rule_id=created.rule_id,
        version=1,
        name=terms.name,
        sealed_texts=terms.sealed_texts,
        occurrence="1",
        reason="target_reached",
        skipped_at=AT,
    )
    moved = _posted(sealed_texts=terms.sealed_texts)
    stored = [_recorded(event) for event in (created, skipped, moved)]
    assert all(b"divorce" not in event.data for event in stored)
    told: list[Any] = [event.payload for event in await texts.open_events(stored)]
    assert [told[0].terms, told[1].name, told[2].memo] == [clear, clear.name, clear.name]
    keys.bury(ASHA)
    told = [event.payload for event in await texts.open_events(stored)]
    assert [told[0].terms.name, told[1].name, told[2].memo] == ["", "", None]


def test_every_contract_with_such_texts_can_seal_them() -> None:
    for entry in registered():
        if entry.type.split(".")[0] not in ("ledger", "banking", "trading"):
            continue
        nested = [
            field.type for field in msgspec.structs.fields(entry.struct) if hasattr(field.type, "__struct_fields__")
        ]
        for struct in (entry.struct, *nested):
            fields = set(struct.__struct_fields__)
            assert not fields & set(NAMES) or "sealed_texts" in fields, entry.type
