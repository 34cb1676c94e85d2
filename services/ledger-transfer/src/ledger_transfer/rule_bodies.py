"""Rules as clients write and read them: bodies in, views out. Amounts are decimal strings, percentages as well."""

import re
import unicodedata
from datetime import datetime
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec
from chassis.money import format_amount, parse_amount
from chassis.problems import Problem, invalid_field
from events.contracts.ledger_rules import (
    BalanceBelow,
    Caps,
    FixedAmount,
    Percentage,
    PercentOfTrigger,
    RuleAmount,
    RuleTerms,
    Scheduled,
    ToTarget,
    Trigger,
    WorstCase,
)

from ledger_transfer.replenish import next_wake
from ledger_transfer.rule_terms import Unusable, usable, with_default_caps
from ledger_transfer.rulebook import Rule
from ledger_transfer.schedules import is_timezone
from ledger_transfer.state import MAX_AMOUNT_MINOR

NAME_LENGTH_MAX: Final = 100
EXECUTIONS_MAX: Final = 1_000

_AT = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]", re.ASCII)
_PERCENT = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,2}))?", re.ASCII)
_WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_LAST: Final = 31

Amount = Annotated[str, msgspec.Meta(max_length=32, description="Decimal string", examples=["5000.00"])]


class ScheduleBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    every: Literal["day", "week", "month"]
    on: (
        Annotated[int, msgspec.Meta(ge=1, le=31)]
        | Annotated[str, msgspec.Meta(max_length=9, description='A weekday\'s name, or "last" of the month')]
        | None
    ) = None
    """Every week: the weekday, 1 or "monday" (the default) to 7. Every month: the day, 1 (the default) to 31 or "last";
    in a shorter month its last day."""
    at: Annotated[str, msgspec.Meta(max_length=5, description="Local time, HH:MM", examples=["09:00"])]


class BalanceBelowBody(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="balance_below", tag_field="type"
):
    threshold: Amount


class ScheduledBody(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="scheduled", tag_field="type"
):
    schedule: ScheduleBody
    timezone: Annotated[str, msgspec.Meta(max_length=64)] = "Asia/Kolkata"


class PercentageBody(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="percentage", tag_field="type"
):
    of: Literal["credit"] = "credit"
    percent: Annotated[str, msgspec.Meta(max_length=6, examples=["20", "12.5"])] | int | float
    min_credit: Amount | None = None
    category: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class FixedBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="fixed", tag_field="type"):
    amount: Amount


class ToTargetBody(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="to_target", tag_field="type"
):
    target: Amount


class PercentOfTriggerBody(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="percent_of_trigger", tag_field="type"
):
    pass


class CapsBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    per_day: Amount | None = None
    per_month: Amount | None = None
    executions_per_day: Annotated[int, msgspec.Meta(ge=1, le=EXECUTIONS_MAX)] | None = None


class RuleBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rule. Without `caps.per_day`, one that money triggers moves at most the step-up threshold a day."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_LENGTH_MAX)]
    source_account_id: UUID
    target_account_id: UUID
    currency: Annotated[str, msgspec.Meta(min_length=3, max_length=3, examples=["INR"])] = "INR"
    trigger: BalanceBelowBody | ScheduledBody | PercentageBody
    amount: FixedBody | ToTargetBody | PercentOfTriggerBody
    caps: CapsBody | None = None


class WorstCaseView(msgspec.Struct, frozen=True, kw_only=True):
    """The most the rule can move. A run made late, after an outage, counts on the day it was due."""

    per_day: str
    per_week: str
    per_month: str


class RuleView(msgspec.Struct, frozen=True, kw_only=True):
    rule_id: UUID
    status: Literal["active", "paused"]
    version: int
    name: str
    source_account_id: UUID
    target_account_id: UUID
    currency: str
    trigger: BalanceBelowBody | ScheduledBody | PercentageBody
    amount: FixedBody | ToTargetBody | PercentOfTriggerBody
    caps: CapsBody
    """As they bind: with the cap that a rule has where its maker set none."""
    worst_case: WorstCaseView
    next_run_at: datetime | None
    """The next run of the schedule, or the next look after a refusal; null where only money wakes the rule."""


def terms_of(body: RuleBody, threshold_minor: int) -> RuleTerms:
    """The terms that the body describes, with their default cap.

    Raises:
        Problem: 400 naming the field that is not valid.
    """
    currency = body.currency
    caps = body.caps or CapsBody()
    terms = RuleTerms(
        name=_plain_text("name", body.name),
        source_account_id=body.source_account_id,
        target_account_id=body.target_account_id,
        currency=currency,
        trigger=_trigger(body.trigger, currency),
        amount=_amount(body.amount, currency),
        caps=Caps(
            per_day_minor=_optional_minor(caps.per_day, currency, "caps.per_day"),
            per_month_minor=_optional_minor(caps.per_month, currency, "caps.per_month"),
            executions_per_day=caps.executions_per_day,
        ),
    )
    try:
        usable(terms)
    except Unusable as error:
        raise invalid_field(error.field, str(error)) from None
    return with_default_caps(terms, threshold_minor)


def rule_view(rule: Rule) -> RuleView:
    """The rule as clients see it."""
    terms = rule.terms
    return RuleView(
        rule_id=rule.rule_id,
        status=rule.status,
        version=rule.version,
        name=terms.name,
        source_account_id=terms.source_account_id,
        target_account_id=terms.target_account_id,
        currency=terms.currency,
        trigger=_trigger_view(terms.trigger, terms.currency),
        amount=_amount_view(terms.amount, terms.currency),
        caps=CapsBody(
            per_day=optional_amount(terms.caps.per_day_minor, terms.currency),
            per_month=optional_amount(terms.caps.per_month_minor, terms.currency),
            executions_per_day=terms.caps.executions_per_day,
        ),
        worst_case=_worst_case_view(rule.worst_case, terms.currency),
        next_run_at=next_wake(rule),
    )


def optional_amount(minor: int | None, currency: str) -> str | None:
    """The decimal string, or None."""
    return None if minor is None else format_amount(minor, currency)


def _trigger(body: BalanceBelowBody | ScheduledBody | PercentageBody, currency: str) -> Trigger:
    match body:
        case BalanceBelowBody():
            return BalanceBelow(threshold_minor=_minor(body.threshold, currency, "trigger.threshold"))
        case ScheduledBody():
            return _scheduled(body)
        case PercentageBody():
            return Percentage(
                percent_hundredths=_percent_hundredths(body.percent),
                min_credit_minor=(
                    0
                    if body.min_credit is None
                    else parse_amount(body.min_credit, currency, field="trigger.min_credit", zero=True)
                ),
                category=None if body.category is None else _plain_text("trigger.category", body.category),
            )


def _scheduled(body: ScheduledBody) -> Scheduled:
    schedule = body.schedule
    if _AT.fullmatch(schedule.at) is None:
        raise invalid_field("trigger.schedule.at", "must be a time of the day such as 09:00")
    if not is_timezone(body.timezone):
        raise invalid_field("trigger.timezone", "must be the name of an IANA time zone such as Asia/Kolkata")
    on: int | None
    match schedule.every:
        case "day":
            if schedule.on is not None:
                raise invalid_field("trigger.schedule.on", "has no meaning every day")
            on = None
        case "week":
            on = _weekday(schedule.on)
        case "month":
            on = _day_of_month(schedule.on)
    return Scheduled(every=schedule.every, on=on, at=schedule.at, timezone=body.timezone)


def _weekday(on: int | str | None) -> int:
    if on is None:
        return 1
    if isinstance(on, str) and on.lower() in _WEEKDAYS:
        return _WEEKDAYS.index(on.lower()) + 1
    if isinstance(on, int) and 1 <= on <= len(_WEEKDAYS):
        return on
    raise invalid_field("trigger.schedule.on", "must be a weekday: 1 to 7, or monday to sunday")


def _day_of_month(on: int | str | None) -> int:
    if on is None:
        return 1
    if on == "last":
        return _LAST
    if isinstance(on, int):
        return on
    raise invalid_field("trigger.schedule.on", 'must be a day of the month: 1 to 31, or "last"')


def _percent_hundredths(percent: str | float) -> int:
    # The shortest text of a JSON number is what its writer wrote, for as few digits as are allowed here.
    match = _PERCENT.fullmatch(percent if isinstance(percent, str) else repr(percent).removesuffix(".0"))
    hundredths = int(match[1] + (match[2] or "").ljust(2, "0")) if match else 0
    if not 0 < hundredths <= 100_00:
        raise invalid_field("trigger.percent", "must be above 0 and at most 100, with at most two decimals")
    return hundredths


def _amount(body: FixedBody | ToTargetBody | PercentOfTriggerBody, currency: str) -> RuleAmount:
    match body:
        case FixedBody():
            return FixedAmount(amount_minor=_minor(body.amount, currency, "amount.amount"))
        case ToTargetBody():
            return ToTarget(target_minor=_minor(body.target, currency, "amount.target"))
        case PercentOfTriggerBody():
            return PercentOfTrigger()


def _minor(text: str, currency: str, field: str) -> int:
    minor = parse_amount(text, currency, field=field)
    if minor > MAX_AMOUNT_MINOR:
        raise Problem(
            400, "invalid_amount", f"The {field} is too large", errors=[{"field": field, "message": "is too large"}]
        )
    return minor


def _optional_minor(text: str | None, currency: str, field: str) -> int | None:
    return None if text is None else _minor(text, currency, field)


def _plain_text(field: str, text: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text) or not text.strip():
        raise invalid_field(field, "must be text without control characters")
    return text


def _trigger_view(trigger: Trigger, currency: str) -> BalanceBelowBody | ScheduledBody | PercentageBody:
    match trigger:
        case BalanceBelow():
            return BalanceBelowBody(threshold=format_amount(trigger.threshold_minor, currency))
        case Scheduled():
            return ScheduledBody(
                schedule=ScheduleBody(every=trigger.every, on=trigger.on, at=trigger.at), timezone=trigger.timezone
            )
        case Percentage():
            whole, hundredths = divmod(trigger.percent_hundredths, 100)
            return PercentageBody(
                percent=f"{whole}.{hundredths:02}",
                min_credit=format_amount(trigger.min_credit_minor, currency) if trigger.min_credit_minor else None,
                category=trigger.category,
            )


def _amount_view(amount: RuleAmount, currency: str) -> FixedBody | ToTargetBody | PercentOfTriggerBody:
    match amount:
        case FixedAmount():
            return FixedBody(amount=format_amount(amount.amount_minor, currency))
        case ToTarget():
            return ToTargetBody(target=format_amount(amount.target_minor, currency))
        case PercentOfTrigger():
            return PercentOfTriggerBody()


def _worst_case_view(worst: WorstCase, currency: str) -> WorstCaseView:
    return WorstCaseView(
        per_day=format_amount(worst.per_day_minor, currency),
        per_week=format_amount(worst.per_week_minor, currency),
        per_month=format_amount(worst.per_month_minor, currency),
    )
