"""The stream `wealth-<user>`: which insights were raised, cleared and dismissed, and the last health. Pure decider."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from events.contracts.registry import Event
from events.contracts.wealth import HealthChanged, InsightCleared, InsightDismissed, InsightRaised
from events.decisions import Refusal

from wealth.health import Health
from wealth.insights import Insight, Shown, bucket_of, from_bucket, settle
from wealth.networth import CURRENCY


class InsightNotFound(Refusal):
    """There is no such insight of this customer, now or before."""

    code = "insight_not_found"


class Entry(NamedTuple):
    insight_id: UUID
    rule: str
    subject: str
    level: int
    state: str
    """`active`, `cleared` or `dismissed`."""
    expires_at: datetime | None


class WealthState(NamedTuple):
    entries: Mapping[UUID, Entry] = {}
    score: int | None = None
    grade: str | None = None


def evolve(state: WealthState, event: Event) -> WealthState:
    match event:
        case InsightRaised():
            subject, level = from_bucket(event.bucket)
            entry = Entry(event.insight_id, event.rule, subject, level, "active", event.expires_at)
            return state._replace(entries={**state.entries, entry.insight_id: entry})
        case InsightCleared() | InsightDismissed():
            word = "cleared" if isinstance(event, InsightCleared) else "dismissed"
            entry = state.entries[event.insight_id]._replace(state=word)
            return state._replace(entries={**state.entries, entry.insight_id: entry})
        case HealthChanged():
            return state._replace(score=event.score, grade=event.grade)
    return state


def raised(shown: Shown, now: datetime, prose: tuple[str, str] | None = None) -> InsightRaised:
    """The event that raises an insight; `prose` replaces its title and body."""
    insight = shown.insight
    title, body = prose or (insight.title, insight.body)
    return InsightRaised(
        insight_id=shown.insight_id,
        rule=insight.rule,
        bucket=bucket_of(insight),
        kind=insight.kind,
        priority=insight.priority,
        title=title,
        body=body,
        evidence=insight.evidence,
        effect_minor=insight.effect_minor,
        currency=CURRENCY,
        action=insight.action,
        raised_at=now,
        expires_at=insight.expires_at,
    )


def noticed(
    state: WealthState,
    user_id: UUID,
    found: Sequence[Insight],
    health: Health,
    now: datetime,
    prose: Mapping[UUID, tuple[str, str]] = {},
) -> list[Event]:
    """What a look at the customer's money changes: insights raised and cleared, the grade of their health."""
    shown = settle(user_id, found, list(state.entries.values()))
    events: list[Event] = [raised(entry, now, prose.get(entry.insight_id)) for entry in shown if not entry.raised]
    kept = {entry.insight_id for entry in shown}
    replaced = {(entry.insight.rule, entry.insight.subject) for entry in shown}
    for entry in state.entries.values():
        if entry.state != "active" or entry.insight_id in kept:
            continue
        if entry.expires_at is not None and entry.expires_at <= now:
            reason = "expired"
        else:
            reason = "superseded" if (entry.rule, entry.subject) in replaced else "condition_ended"
        events.append(InsightCleared(insight_id=entry.insight_id, reason=reason, cleared_at=now))  # type: ignore[arg-type]
    if health.grade != state.grade:
        events.append(
            HealthChanged(
                score=health.score,
                grade=health.grade,
                previous_score=state.score,
                previous_grade=state.grade,  # type: ignore[arg-type]
                confidence_percent=health.confidence_percent,
                changed_at=now,
            )
        )
    return events


def dismiss(state: WealthState, insight_id: UUID, shown: Sequence[Shown], now: datetime) -> list[Event]:
    """The customer does not want to see it. One that is shown but not recorded yet is raised first.

    Raises:
        InsightNotFound: neither shown nor ever raised.
    """
    entry = state.entries.get(insight_id)
    if entry is not None and entry.state == "dismissed":
        return []
    dismissed = InsightDismissed(insight_id=insight_id, dismissed_at=now)
    current = next((one for one in shown if one.insight_id == insight_id), None)
    if entry is not None:
        return [dismissed]
    if current is None:
        raise InsightNotFound("There is no such insight")
    return [raised(current, now), dismissed]
