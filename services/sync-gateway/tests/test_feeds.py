"""The translation table: what each item type becomes, and what is refused for which reason."""

import copy
from typing import Any, get_args

import pytest
from events.contracts import banking, contract_of, decode, encode
from feed_samples import VALID, valid
from hypothesis import given
from hypothesis import strategies as st
from sync_gateway.feeds import (
    ITEM_BYTES_MAX,
    ITEM_TYPES,
    PLATFORMS,
    Platform,
    Rejected,
    event_id_of,
    reported_id,
    translate,
)


@pytest.mark.parametrize(("platform", "raw", "event"), VALID, ids=lambda value: str(value)[:60])
def test_an_item_becomes_its_event(platform: Platform, raw: dict[str, Any], event: Any) -> None:
    translated = translate(platform, raw)
    assert translated.event == event
    # What is stored can be read back under its contract.
    contract = contract_of(translated.event)
    assert decode(contract.type, contract.schema_version, encode(translated.event)) == event


def test_every_item_type_has_a_row_above() -> None:
    assert set(get_args(Platform)) == set(PLATFORMS) == set(ITEM_TYPES)
    known = {(platform, type_) for platform in PLATFORMS for type_ in ITEM_TYPES[platform]}
    assert {(platform, raw["type"]) for platform, raw, _ in VALID} == known


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_table_names_exactly_the_fields_of_the_contracts(platform: Platform) -> None:
    envelope = {"item_id", "customer_id", "occurred_at", "sequence"}
    for type_ in ITEM_TYPES[platform]:
        translated = translate(platform, valid(platform, type_))
        assert envelope < set(translated.event.__struct_fields__)


@pytest.mark.parametrize(("platform", "raw", "event"), VALID, ids=lambda value: str(value)[:60])
def test_every_required_field_is_required(platform: Platform, raw: dict[str, Any], event: Any) -> None:
    optional = {"name", "counterparty", "memo", "reference", "realized_pnl", "origin", "through_sequence"}
    if raw["type"] == "fixed_deposit.matured":
        optional.add("currency")
    for name in raw["data"]:
        damaged = copy.deepcopy(raw)
        del damaged["data"][name]
        if name in optional:
            translate(platform, damaged)
        else:
            with pytest.raises(Rejected):
                translate(platform, damaged)
    for name in ("id", "type", "occurred_at", "customer_id", "data"):
        damaged = copy.deepcopy(raw)
        del damaged[name]
        with pytest.raises(Rejected):
            translate(platform, damaged)


@pytest.mark.parametrize(
    "amount",
    [
        "0",
        "0.00",
        "-1.00",
        "1.005",
        "1.",
        ".5",
        "NaN",
        "Infinity",
        "1e3",
        "1E3",
        "+1.00",
        " 1.00",
        "1.00 ",
        "1,000.00",
        "१००.००",
        "1_000",
        "0x10",
        "",
        "9" * 14,
        "1.00\n",
        100,
        100.5,
        True,
        None,
        ["1.00"],
        {"amount": "1.00"},
    ],
)
def test_amounts_that_are_no_positive_decimal_strings_are_refused(amount: Any) -> None:
    raw = valid("bfc", "transaction.posted")
    raw["data"]["amount"] = amount
    with pytest.raises(Rejected) as refused:
        translate("bfc", raw)
    assert refused.value.code == "invalid_amount"


@given(st.integers(min_value=1, max_value=10**15 - 1))
def test_amounts_keep_every_paisa(minor: int) -> None:
    raw = valid("bfc", "transaction.posted")
    raw["data"]["amount"] = f"{minor // 100}.{minor % 100:02d}"
    event = translate("bfc", raw).event
    assert isinstance(event, banking.TransactionPosted)
    assert event.amount_minor == minor


def _set(path: str, value: Any) -> Any:
    def change(raw: dict[str, Any]) -> None:
        target = raw
        *parents, last = path.split(".")
        for parent in parents:
            target = target[parent]
        target[last] = value

    return change


NESTED: Any = "deep"
for _ in range(6):
    NESTED = {"a": NESTED}


@pytest.mark.parametrize(
    ("platform", "type_", "path", "value", "code"),
    [
        ("bfc", "transaction.posted", "type", "transaction.imagined", "unknown_type"),
        ("bfc", "transaction.posted", "type", "wallet.opened", "unknown_type"),
        ("vyomo", "wallet.opened", "type", "account.opened", "unknown_type"),
        ("bfc", "transaction.posted", "type", 7, "unknown_type"),
        ("bfc", "transaction.posted", "type", ["transaction.posted"], "unknown_type"),
        ("bfc", "transaction.posted", "id", "", "invalid_data"),
        ("bfc", "transaction.posted", "id", "a\0b", "invalid_data"),
        ("bfc", "transaction.posted", "id", "x" * 129, "invalid_data"),
        ("bfc", "transaction.posted", "id", 1, "invalid_data"),
        ("bfc", "transaction.posted", "customer_id", " C-1 ", "invalid_data"),
        ("bfc", "transaction.posted", "customer_id", "C\n1", "invalid_data"),
        ("bfc", "transaction.posted", "sequence", "17", "invalid_data"),
        ("bfc", "transaction.posted", "sequence", True, "invalid_data"),
        ("bfc", "transaction.posted", "sequence", -1, "invalid_data"),
        ("bfc", "transaction.posted", "sequence", 2**70, "invalid_data"),
        ("bfc", "transaction.posted", "occurred_at", "2026-02-12T09:00:00", "invalid_data"),
        ("bfc", "transaction.posted", "occurred_at", "yesterday", "invalid_data"),
        ("bfc", "transaction.posted", "occurred_at", 1770886800, "invalid_data"),
        ("bfc", "transaction.posted", "occurred_at", "0001-01-01T00:00:00+14:00", "invalid_data"),
        ("bfc", "transaction.posted", "occurred_at", "9999-12-31T23:59:59-14:00", "invalid_data"),
        ("bfc", "transaction.posted", "data", [], "malformed_item"),
        ("bfc", "transaction.posted", "data", "{}", "malformed_item"),
        ("bfc", "transaction.posted", "data.direction", "sideways", "invalid_data"),
        ("bfc", "transaction.posted", "data.direction", ["credit"], "invalid_data"),
        ("bfc", "transaction.posted", "data.category", "bribe", "invalid_data"),
        ("bfc", "transaction.posted", "data.currency", "XYZ", "invalid_currency"),
        ("bfc", "transaction.posted", "data.currency", "inr", "invalid_currency"),
        ("bfc", "transaction.posted", "data.currency", ["INR"], "invalid_currency"),
        ("bfc", "transaction.posted", "data.memo", "x" * 1001, "invalid_data"),
        ("bfc", "transaction.posted", "data.memo", "a\0b", "invalid_data"),
        ("bfc", "transaction.posted", "data.memo", 5, "invalid_data"),
        ("bfc", "transaction.posted", "data.extra", "x" * ITEM_BYTES_MAX, "too_large"),
        ("bfc", "account.opened", "data.kind", "fixed_deposit", "invalid_data"),
        ("bfc", "fixed_deposit.opened", "data.rate_percent", "-7.1", "invalid_data"),
        ("bfc", "fixed_deposit.opened", "data.rate_percent", "NaN", "invalid_data"),
        ("bfc", "fixed_deposit.opened", "data.rate_percent", 1e22, "invalid_data"),
        ("bfc", "fixed_deposit.opened", "data.rate_percent", True, "invalid_data"),
        ("bfc", "fixed_deposit.opened", "data.opened_on", "2026-02-30", "invalid_data"),
        ("bfc", "fixed_deposit.opened", "data.opened_on", 20260212, "invalid_data"),
        ("bfc", "loan.opened", "data.outstanding", "-1.00", "invalid_amount"),
        ("bfc", "profile.changed", "data.base_version", "3", "invalid_data"),
        ("bfc", "profile.changed", "data.fields", {}, "invalid_data"),
        ("bfc", "profile.changed", "data.fields", {f"f{n}": n for n in range(65)}, "invalid_data"),
        ("bfc", "profile.changed", "data.fields", {"a b": 1}, "invalid_data"),
        ("bfc", "profile.changed", "data.fields", {"phone": "\0"}, "invalid_data"),
        ("bfc", "profile.changed", "data.fields", {"tags": ["ok", {"\0": 1}]}, "invalid_data"),
        ("bfc", "profile.changed", "data.fields", {"phone": 10**400}, "invalid_data"),
        ("bfc", "profile.changed", "data.fields", NESTED, "invalid_data"),
        ("vyomo", "trade.executed", "data.quantity", 0, "invalid_data"),
        ("vyomo", "trade.executed", "data.quantity", 1.5, "invalid_data"),
        ("vyomo", "trade.executed", "data.quantity", "75", "invalid_data"),
        ("vyomo", "trade.executed", "data.price", "-0.05", "invalid_amount"),
        ("vyomo", "trade.executed", "data.realized_pnl", "1e5", "invalid_amount"),
        ("vyomo", "risk.alerted", "data.severity", "apocalyptic", "invalid_data"),
    ],
)
def test_what_is_refused(platform: Platform, type_: str, path: str, value: Any, code: str) -> None:
    raw = valid(platform, type_)
    _set(path, value)(raw)
    with pytest.raises(Rejected) as refused:
        translate(platform, raw)
    assert refused.value.code == code
    assert refused.value.reason.startswith(code)


@pytest.mark.parametrize("raw", [None, 1, "x", [], True])
def test_an_item_that_is_no_object_is_refused(raw: Any) -> None:
    with pytest.raises(Rejected, match="malformed_item"):
        translate("bfc", raw)
    assert reported_id(raw) is None


def test_unknown_fields_are_ignored() -> None:
    raw = valid("bfc", "transaction.posted")
    raw["shard"] = 4
    raw["data"]["branch"] = {"ifsc": "BFC0000001"}
    assert translate("bfc", raw).event == translate("bfc", valid("bfc", "transaction.posted")).event


def test_the_same_item_has_one_id_and_one_hash_however_it_is_written() -> None:
    raw = valid("bfc", "transaction.posted")
    reordered = dict(reversed(raw.items()))
    reordered["data"] = dict(reversed(raw["data"].items()))
    first, second = translate("bfc", raw), translate("bfc", reordered)
    assert (first.event_id, first.request_hash) == (second.event_id, second.request_hash)


def test_other_content_under_the_same_id_has_another_hash() -> None:
    raw = valid("bfc", "transaction.posted")
    changed = valid("bfc", "transaction.posted")
    changed["data"]["amount"] = "85000.01"
    first, second = translate("bfc", raw), translate("bfc", changed)
    assert first.event_id == second.event_id
    assert first.request_hash != second.request_hash


def test_ids_of_the_two_platforms_do_not_meet() -> None:
    assert event_id_of("bfc", "ev-1") != event_id_of("vyomo", "ev-1")


def test_the_event_id_of_an_item_never_changes() -> None:
    # Every item ever taken would be posted again.
    assert str(event_id_of("bfc", "bfc-ev-1")) == "87075fd3-2877-506e-9c64-ba7133d28b7a"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from([(platform, raw) for platform, raw, _ in VALID]), st.data())
def test_anything_in_any_field_is_translated_or_refused(
    sample: tuple[Platform, dict[str, Any]], data: st.DataObject
) -> None:
    platform, raw = sample[0], copy.deepcopy(sample[1])
    target = raw if data.draw(st.booleans()) else raw["data"]
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(JSON)
    try:
        translated = translate(platform, raw)
    except Rejected:
        return
    contract = contract_of(translated.event)
    assert decode(contract.type, contract.schema_version, encode(translated.event)) == translated.event
