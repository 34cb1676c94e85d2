"""The table of rules and the texts: what each event reads like, in each language."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from events.contracts import contract_of, identity, notification, trading
from events.contracts.notification import Language, Priority
from events.contracts.registry import Event
from jsonschema import Draft202012Validator
from notifier import texts
from notifier.grouping import Group, Lane, open_group, say, say_one
from notifier.rules import RULES, TYPES, actions_of, fact_of
from notifier.texts import LANGUAGES, catalogue

sys.path.insert(0, str(Path(__file__).parent))

from samples import ACCOUNTS, EVENTS, SAVINGS, TRANSFER, posting, risk, trade, transfer
from tellers import AT, fact, number

SNAPSHOTS = Path(__file__).parent / "snapshots"
NAMES = ACCOUNTS


def said(event: Event, language: Language = "en-IN") -> tuple[str, str]:
    found = say_one(fact(event), language, NAMES)
    return found.title, found.body


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_as_it_was_agreed(language: Language) -> None:
    """A changed text shows up here; after reading it, delete the file and run the test again to record it."""
    lines = []
    for name, event in EVENTS.items():
        found = say_one(fact(event), language, NAMES)
        row = fact(event)
        lines.append(f"{name} · {row.category} · {row.priority}\n  {found.emoji} {found.title}\n  {found.body}")
        lines += [f"  [{a.label}] {a.method} {a.href}" for a in found.actions]
    for name, event in EVENTS.items():
        if fact(event).priority == "critical":
            continue  # never grouped
        several = say(group_of(name), language, NAMES)
        lines.append(f"3 × {name}\n  {several.emoji} {several.title}\n  {several.body}")
    text = "\n".join(lines) + "\n"
    path = SNAPSHOTS / f"{language}.txt"
    if not path.exists():
        path.write_text(text, encoding="utf-8")
        pytest.fail(f"recorded {path.name}: read it, and run again")
    assert text == path.read_text(encoding="utf-8")


def test_every_rule_has_a_sample() -> None:
    assert {contract_of(event).type for event in EVENTS.values()} == TYPES


def test_the_languages_have_the_same_texts() -> None:
    def keys(value: object, path: str = "") -> set[str]:
        if isinstance(value, dict):
            return set().union(*(keys(inner, f"{path}.{name}") for name, inner in value.items()))
        return {path}

    english, hindi = (keys(catalogue(language)) for language in LANGUAGES)
    assert english == hindi


def test_the_same_values_are_in_every_language() -> None:
    """A translation that forgets the amount is no translation."""
    import string

    english, hindi = (catalogue(language) for language in LANGUAGES)
    for part in ("single", "several"):
        for key, entry in english[part].items():
            for field, template in entry.items():
                wanted = {name for _, name, _, _ in string.Formatter().parse(template) if name}
                found = {name for _, name, _, _ in string.Formatter().parse(hindi[part][key][field]) if name}
                assert found == wanted, (part, key, field)


def test_money_in() -> None:
    assert said(posting(85_000_50)) == (
        "₹85,000.50 received",
        "From Acme Ltd, into BFC savings account SB-1001. Balance: ₹85,000.",
    )


def test_money_out_without_a_counterparty() -> None:
    assert said(posting(-1_200_00, counterparty=None, category="utilities")) == (
        "₹1,200 paid",
        "Utilities, from BFC savings account SB-1001. Balance: ₹85,000.",
    )


def test_a_memo_is_text_and_never_a_template() -> None:
    assert said(transfer(memo="{source} {0} {"))[1].endswith("VW-1001 ({source} {0} {).")


def test_an_account_that_nobody_named() -> None:
    found = say_one(fact(transfer()), "en-IN", {})
    assert found.body == "From an account to an account."


def test_indian_grouping_in_hindi_too() -> None:
    assert said(posting(12_34_567_50), "hi-IN")[0] == "₹12,34,567.50 प्राप्त"


def test_a_posting_below_the_floor_is_urgent() -> None:
    assert fact(posting(-1_200_00, below_floor=True)).priority == "high"


def told(event: Event) -> bool:
    return fact_of(contract_of(event).type, event, event_id=number(1), position=1, recorded_at=AT) is not None


def test_what_another_event_tells_is_told_once() -> None:
    assert not told(posting(-100, type="trade"))
    assert not told(transfer(rule_id=TRANSFER))
    assert not told(transfer(reverses=TRANSFER))
    assert not told(identity.CredentialChanged(sealed_password_hash="x"))
    assert told(identity.CredentialChanged(sealed_password_hash="x", reason="reset"))
    assert not told(identity.ProfileChanged(sealed_profile="x", email_verified=True))


@pytest.mark.parametrize(
    ("unrealized", "is_told"), [(-19_99, False), (-20_00, True), (-35_00, True), (10_00, False), (0, False)]
)
def test_a_position_is_told_when_its_loss_is_worth_a_word(unrealized: int, is_told: bool) -> None:
    event = EVENTS["position_loss"]
    assert isinstance(event, trading.PositionChanged)
    changed = msgspec.structs.replace(event, quantity=1, average_price_minor=100_00, unrealized_pnl_minor=unrealized)
    assert told(changed) is is_told


def test_ticks_within_a_step_of_loss_are_one_thing_to_tell() -> None:
    event = EVENTS["position_loss"]
    assert isinstance(event, trading.PositionChanged)
    names = {
        percent: fact(
            msgspec.structs.replace(event, quantity=1, average_price_minor=100_00, unrealized_pnl_minor=-percent * 100)
        ).told.once
        for percent in (20, 25, 29, 30)
    }
    assert names[20] == names[25] == names[29] != names[30]


@pytest.mark.parametrize(
    ("realized", "ending"),
    [(15_000_00, " P&L: +₹15,000."), (-1_50, " P&L: -₹1.50."), (0, " P&L: ₹0."), (None, "charges ₹40.")],
)
def test_trade(realized: int | None, ending: str) -> None:
    title, body = said(trade(realized_pnl_minor=realized))
    assert title == "Sold 50 NIFTY CALL"
    assert body.startswith("At ₹120.50 each, charges ₹40.")
    assert body.endswith(ending)


@pytest.mark.parametrize(("severity", "priority"), [("critical", "critical"), ("warning", "high"), ("info", "medium")])
def test_a_risk_alert_is_as_urgent_as_it_says(severity: str, priority: Priority) -> None:
    found = fact(risk(severity))
    assert (found.category, found.priority) == ("alert", priority)
    assert said(risk(severity)) == (f"Risk alert: {severity.capitalize()}", "Margin is at 92 %")


def test_security_and_money_alerts_are_critical() -> None:
    for name, event in EVENTS.items():
        found = fact(event)
        if found.category == "security" or name == "money_alert":
            assert found.priority == "critical", name


def test_links_of_buttons_are_filled_from_the_event() -> None:
    assert [action.href for action in actions_of(fact(transfer()))] == [f"/api/transfers/{TRANSFER}"]
    assert actions_of(fact(posting(100)))[0].href == f"/api/accounts/{SAVINGS}"


def test_every_button_calls_our_own_api() -> None:
    for event in EVENTS.values():
        for action in actions_of(fact(event)):
            assert action.href.startswith("/api/")
            assert "{" not in action.href


def test_another_currency_is_named() -> None:
    assert texts.money(5000, "USD") == "USD 50.00"
    assert said(trade(currency="USD", realized_pnl_minor=5000))[1].endswith("P&L: USD +50.00.")


def test_moments_are_indian() -> None:
    assert texts.moment(datetime(2026, 1, 1, 18, 29, tzinfo=UTC), "en-IN") == "1 Jan 2026, 23:59 IST"
    assert texts.moment(datetime(2026, 1, 1, 18, 30, tzinfo=UTC), "hi-IN") == "2 जन॰ 2026, 00:00 IST"


def test_one_rule_per_event() -> None:
    types = [contract_of(rule.on).type for rule in RULES]
    assert len(types) == len(set(types))


def test_an_operators_message_keeps_its_category_and_stands_alone() -> None:
    found = fact(notification.NotificationRequested(category="alert", priority="low", title="{x}", body="b"))
    assert (found.category, found.priority, found.alone) == ("alert", "low", True)
    assert say_one(found, "en-IN", {}).title == "{x}"


DOCUMENT = Path(__file__).parents[3] / "services/sync-gateway/src/sync_gateway/openapi.json"
"""Every route of every service, as the services' own code describes them."""


def refusal(document: dict[str, Any], action: notification.Action) -> str | None:
    """Why the API would not even understand what a button sends; None where it would."""
    path = action.href.partition("?")[0].split("/")
    for template, operations in document["paths"].items():
        parts = template.split("/")
        fits = len(parts) == len(path) and all(p == q or p.startswith("{") for p, q in zip(parts, path, strict=True))
        operation = operations.get(action.method.lower())
        if not fits or operation is None:
            continue
        wanted = operation.get("requestBody")
        if wanted is None:
            return None if not action.body else "it takes no body"
        if action.body is None:
            return "it needs a body" if wanted.get("required", True) else None
        schema = {**wanted["content"]["application/json"]["schema"], "components": document["components"]}
        faults = [fault.message for fault in Draft202012Validator(schema).iter_errors(action.body)]
        return "; ".join(faults) or None
    return f"there is no {action.method} {action.href}"


def every_button() -> dict[str, notification.Action]:
    """All buttons of the table, and of what is told in groups."""
    buttons = [action for event in EVENTS.values() for action in actions_of(fact(event))]
    buttons += [action for name in EVENTS for action in say(group_of(name), "en-IN", NAMES).actions]
    return {f"{action.method} {action.href}": action for action in buttons}


def group_of(name: str, count: int = 3) -> Group:
    lane = Lane(key="x")
    for n in range(count):
        one = fact(EVENTS[name], n=n)
        if lane.group is None:
            open_group(lane, one)
        else:
            lane.group.add(one)
    assert lane.group is not None
    return lane.group


def test_the_api_understands_every_button() -> None:
    document = json.loads(DOCUMENT.read_text("utf-8"))
    buttons = every_button()
    assert len(buttons) > 15
    assert {name: fault for name, action in buttons.items() if (fault := refusal(document, action))} == {}
    # And this test would notice.
    for wrong in (
        notification.Action(label="x", method="POST", href="/api/accounts"),
        notification.Action(label="x", method="GET", href="/api/nothing"),
        notification.Action(label="x", method="PATCH", href="/api/auto-replenish/1/status", body={"status": "asleep"}),
    ):
        assert refusal(document, wrong) is not None, wrong
