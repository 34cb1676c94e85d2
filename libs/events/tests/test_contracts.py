"""Schema evolution: stored samples, the compatibility check, upcasters, and the AsyncAPI document."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema
import msgspec
import pytest
from events import asyncapi
from events.contracts import UnknownContract, catalogue, decode, registered, registry
from events.contracts.describe import example, json_schema
from events.contracts.registry import Event, contract, newest, upcaster

STORED = catalogue.stored()
SAMPLES = [
    pytest.param(event_type, int(version), sample, id=f"{event_type}-v{version}-{number}")
    for event_type, versions in STORED.items()
    for version, entry in versions.items()
    for number, sample in enumerate(entry["samples"])
]


@pytest.mark.parametrize(("event_type", "version", "sample"), SAMPLES)
def test_every_stored_sample_of_every_version_decodes(event_type: str, version: int, sample: dict[str, Any]) -> None:
    payload = decode(event_type, version, msgspec.json.encode(sample))
    assert type(payload) is newest(event_type).struct


def test_the_code_honours_what_was_published() -> None:
    assert catalogue.breaks(STORED, catalogue.of_code()) == []


@pytest.mark.parametrize("entry", registered(), ids=lambda entry: f"{entry.type}-v{entry.schema_version}")
def test_examples_fit_their_schema_and_their_struct(entry: registry.Contract) -> None:
    schema = json_schema(entry.struct)
    jsonschema.Draft202012Validator.check_schema(schema)
    for full in (True, False):
        payload = example(entry.struct, full=full)
        jsonschema.validate(payload, schema)
        msgspec.convert(payload, entry.struct, strict=False)


OLD: catalogue.Catalogue = {
    "ledger.account.opened": STORED["ledger.account.opened"],
}

Change = Callable[[dict[str, Any]], object]


def _schema(entry: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = entry["schema"]
    return schema


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda e: _schema(e)["properties"].pop("currency"), "currency is gone"),
        (lambda e: _schema(e)["properties"]["currency"].update(type="integer"), "type was 'string', is 'integer'"),
        (lambda e: _schema(e)["properties"]["kind"]["enum"].remove("savings"), "no longer allows savings"),
        (lambda e: _schema(e)["required"].append("name"), "name was optional"),
        (lambda e: _schema(e)["required"].remove("currency"), "currency was required"),
        (
            lambda e: (_schema(e)["properties"].update(x={"type": "string"}), _schema(e)["required"].append("x")),
            "x is new and has no default",
        ),
        (
            lambda e: _schema(e)["$defs"]["Leg"]["properties"]["amount_minor"].update(type="number"),
            "legs.items.amount_minor: type was 'integer', is 'number'",
        ),
        (
            lambda e: _schema(e)["properties"]["name"].update(anyOf=[{"type": "string"}]),
            "name: was one of 2 types",
        ),
        (lambda e: e.update(public=False), "was public"),
    ],
)
def test_an_incompatible_change_is_named(change: Change, reason: str) -> None:
    new = copy.deepcopy(OLD)
    change(new["ledger.account.opened"]["1"])
    assert any(reason in broken for broken in catalogue.breaks(OLD, new)), catalogue.breaks(OLD, new)


def test_a_contract_that_is_gone_is_named() -> None:
    assert catalogue.breaks(OLD, {}) == ["ledger.account.opened v1: gone, but the log holds such events"]


def test_a_field_with_a_default_and_a_new_enumeration_value_are_additions() -> None:
    new = copy.deepcopy(OLD)
    schema = new["ledger.account.opened"]["1"]["schema"]
    schema["properties"]["nickname"] = {"type": "string", "default": ""}
    schema["properties"]["kind"]["enum"].append("gold")
    assert catalogue.breaks(OLD, new) == []
    assert catalogue.additions(OLD, new) == ["ledger.account.opened v1"]


def test_writing_keeps_the_samples_of_before(tmp_path: Path) -> None:
    catalogue.write(copy.deepcopy(OLD), tmp_path)
    grown = copy.deepcopy(OLD)
    grown["ledger.account.opened"]["1"]["samples"] = [{"brand": "new"}]
    catalogue.write(grown, tmp_path)
    samples = catalogue.stored(tmp_path)["ledger.account.opened"]["1"]["samples"]
    assert samples == [*OLD["ledger.account.opened"]["1"]["samples"], {"brand": "new"}]


@pytest.fixture
def weighed() -> Iterator[str]:
    """A type of this test with three schema versions: grams, then kilograms, then with a unit."""
    event_type = f"test.parcel.weighed{uuid4().hex}"

    @contract(event_type)
    class V1(Event, frozen=True, kw_only=True):
        grams: int

    @contract(event_type, schema_version=2)
    class V2(Event, frozen=True, kw_only=True):
        kilograms: float

    @contract(event_type, schema_version=3)
    class V3(Event, frozen=True, kw_only=True):
        weight: float
        unit: str

    @upcaster(V1)
    def _(old: V1) -> V2:
        return V2(kilograms=old.grams / 1000)

    @upcaster(V2)
    def _(old: V2) -> V3:
        return V3(weight=old.kilograms, unit="kg")

    with pytest.raises(ValueError, match="two upcasters"):
        upcaster(V2)(lambda old: V3(weight=old.kilograms, unit="kg"))
    yield event_type
    for version in (1, 2, 3):
        registry._forget(event_type, version)


@pytest.mark.parametrize(
    ("version", "data"),
    [(1, b'{"grams":1500}'), (2, b'{"kilograms":1.5}'), (3, b'{"weight":1.5,"unit":"kg"}')],
)
def test_every_version_decodes_to_the_newest(weighed: str, version: int, data: bytes) -> None:
    payload = decode(weighed, version, data)
    assert type(payload) is newest(weighed).struct
    assert msgspec.to_builtins(payload) == {"weight": 1.5, "unit": "kg"}


def test_a_version_from_the_future_is_unknown(weighed: str) -> None:
    with pytest.raises(UnknownContract):
        decode(weighed, 4, b"{}")


def test_the_asyncapi_document_is_valid_and_holds_the_public_types_alone() -> None:
    document = asyncapi.document()
    schema = json.loads(Path(__file__).with_name("asyncapi-3.0.0.schema.json").read_text())
    jsonschema.validators.validator_for(schema)(schema).validate(document)
    assert set(document["channels"]) == {entry.type for entry in registered() if entry.public}
    for message in document["components"]["messages"].values():
        jsonschema.Draft202012Validator.check_schema(message["payload"])
        jsonschema.validate(message["examples"][0]["payload"], message["payload"])
