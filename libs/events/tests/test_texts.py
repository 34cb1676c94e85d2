"""Sealed texts on their way to consumers: opened in payload and bytes, absent where they may not be read."""

import base64
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from events.contracts import contract_of, encode, identity, ledger, registered
from events.contracts.registry import Event
from events.envelope import Metadata, RecordedEvent, new_id
from events.sealing import SealBroken, SubjectErased
from events.texts import NAMES, Texts

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
    contract = contract_of(payload)
    return RecordedEvent(
        position=1,
        stream=f"{category}-{user}",
        version=1,
        event_id=new_id(),
        type=contract.type,
        schema_version=contract.schema_version,
        subject=user,
        data=encode(payload),
        metadata=Metadata(),
        recorded_at=AT,
    )


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


def test_every_contract_with_such_texts_can_seal_them() -> None:
    """Rules are called by their names when they are decided on: see decision 0046."""
    named = {
        "ledger.rule.created",
        "ledger.rule.changed",
        "ledger.rule.fired",
        "ledger.rule.refused",
        "ledger.rule.skipped",
    }
    for entry in registered():
        context = entry.type.split(".")[0]
        fields = set(entry.struct.__struct_fields__)
        if context in ("ledger", "banking", "trading") and fields & set(NAMES) and entry.type not in named:
            assert "sealed_texts" in fields, entry.type
