"""The routes of `/api/auto-replenish`."""

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Final, NoReturn, TypeVar
from uuid import UUID

import asyncpg
import msgspec
from chassis.consistency import HEADER as CONSISTENCY_HEADER
from chassis.consistency import CaughtUp, consistency_token
from chassis.cursors import CursorCodec
from chassis.money import format_amount
from chassis.problems import Problem, invalid_field
from chassis.request import AnyRequest
from chassis.revocations import MOVES_MONEY
from chassis.step_up import StepUp as ProvenStepUp
from chassis.step_up import step_up_required
from chassis.tokens import Caller
from events.contracts.ledger_rules import RuleFired, RuleRefused, RuleTerms
from events.decisions import Decided, Refusal
from events.envelope import derived_id, new_id
from events.store import EventIdReused
from litestar import Response, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody

from ledger_transfer import rule_commands, rulebook, transfers
from ledger_transfer.backtests import backtest
from ledger_transfer.ledger import Ledger
from ledger_transfer.projections import rules
from ledger_transfer.projections.rules import LAST, HistoryRow, RuleRow
from ledger_transfer.queries import Cursor, Key, Limit, instant, key_of, reject_unknown
from ledger_transfer.replenish import Verdict, explain, look
from ledger_transfer.rule_bodies import RuleBody, RuleView, optional_amount, rule_view, terms_of
from ledger_transfer.rule_views import (
    BacktestBody,
    BacktestItemView,
    BacktestView,
    CheckBody,
    CheckItemView,
    CheckView,
    HistoryItemView,
    HistoryPage,
    RuleDetailView,
    RulePage,
    StatusBody,
)
from ledger_transfer.rulebook import Rule, RuleBook
from ledger_transfer.state import Decision
from ledger_transfer.transfers import Clearance, StepUp

REPLAYED_HEADER: Final = "Idempotent-Replayed"
BACKTEST_ITEMS_MAX: Final = 1_000
BACKTEST_MAX: Final = timedelta(days=3 * 366)

T = TypeVar("T")


def rule_routes(
    ledger: Ledger, database: asyncpg.Pool, cursors: CursorCodec, *, step_up_threshold_minor: int
) -> list[HTTPRouteHandler]:
    """The routes. `step_up_threshold_minor`: a rule whose worst case per day is above it needs step-up."""

    def clearance(step_up: ProvenStepUp | None) -> Clearance:
        return Clearance(
            threshold_minor=step_up_threshold_minor,
            step_up=None
            if step_up is None
            else StepUp(
                jti=str(step_up.jti),
                amount_minor=step_up.amount_minor,
                currency=step_up.currency,
                to_account_id=step_up.to_account_id,
            ),
        )

    async def current(user_id: UUID, rule_id: UUID) -> Rule:
        rule = (await ledger.state(user_id)).rules.rules.get(rule_id)
        if rule is None:
            raise _rule_not_found()
        return rule

    async def viewed(user_id: UUID, rule: Rule) -> RuleView:
        return rule_view(msgspec.structs.replace(rule, terms=await ledger.opened_terms(user_id, rule.terms)))

    @post("/api/auto-replenish", summary="Make a rule, active and evaluated at once", opt=MOVES_MONEY)
    async def create_rule(
        request: AnyRequest,
        data: JSONBody[RuleBody],
        caller: NamedDependency[Caller],
        step_up: NamedDependency[ProvenStepUp | None],
        idempotency_key: Key = None,
    ) -> Response[RuleView]:
        reject_unknown(request)
        wanted = terms_of(data, step_up_threshold_minor)
        rule_id = _id_of(caller, "rule", idempotency_key)
        terms = await ledger.sealed_terms(caller.user_id, wanted)
        decided = await _refusals_told(
            ledger.execute(
                caller.user_id,
                lambda decision: rule_commands.create(decision, rule_id, terms, clearance(step_up)),
                event_id=rule_id,
                request_hash=sha256(b"POST /api/auto-replenish" + _body(wanted)).digest(),
                metadata=caller.metadata(),
            ),
            caller,
        )
        # The answer is made of the events alone: a repeated request gets the first one's.
        book = RuleBook()
        for event in decided.events:
            if type(event) in rulebook.EVENTS and getattr(event, "rule_id", None) == rule_id:
                book = rulebook.evolve(book, event)
        answer = await viewed(caller.user_id, book.rules[rule_id])
        return Response(answer, status_code=201, headers=_headers(decided))

    @get("/api/auto-replenish", summary="The caller's rules, in the order of their making")
    async def list_rules(
        request: AnyRequest,
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        limit: Limit = 50,
        cursor: Cursor = None,
    ) -> RulePage:
        reject_unknown(request, "limit", "cursor")
        user_id = caller.user_id
        after = cursors.decode(cursor, int, purpose="rules", caller=user_id) if cursor is not None else 0
        rows = await rules.list_rules(database, user_id, after_position=after, limit=limit + 1)
        page = rows[:limit]
        more = len(rows) > limit
        return RulePage(
            items=[_detail(row) for row in page],
            next_cursor=cursors.encode(page[-1].position, purpose="rules", caller=user_id) if more else None,
        )

    @get("/api/auto-replenish/{rule_id:uuid}", summary="One rule")
    async def get_rule(
        request: AnyRequest,
        rule_id: FromPath[UUID],
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
    ) -> RuleDetailView:
        reject_unknown(request)
        row = await rules.get_rule(database, caller.user_id, rule_id)
        if row is None:
            raise _rule_not_found()
        return _detail(row)

    @put("/api/auto-replenish/{rule_id:uuid}", summary="Give the rule other terms: a new version", opt=MOVES_MONEY)
    async def change_rule(
        request: AnyRequest,
        rule_id: FromPath[UUID],
        data: JSONBody[RuleBody],
        caller: NamedDependency[Caller],
        step_up: NamedDependency[ProvenStepUp | None],
    ) -> Response[RuleView]:
        reject_unknown(request)
        wanted = terms_of(data, step_up_threshold_minor)
        before = await current(caller.user_id, rule_id)
        terms = await ledger.sealed_terms(caller.user_id, wanted, like=before.terms)
        decided = await _refusals_told(
            ledger.execute(
                caller.user_id,
                lambda decision: rule_commands.change(decision, rule_id, terms, clearance(step_up)),
                event_id=new_id(),
                metadata=caller.metadata(),
            ),
            caller,
        )
        answer = await viewed(caller.user_id, await current(caller.user_id, rule_id))
        return Response(answer, headers=_headers(decided))

    @patch("/api/auto-replenish/{rule_id:uuid}/status", summary="Pause or resume the rule", opt=MOVES_MONEY)
    async def change_rule_status(
        request: AnyRequest, rule_id: FromPath[UUID], data: JSONBody[StatusBody], caller: NamedDependency[Caller]
    ) -> Response[RuleView]:
        reject_unknown(request)
        command = rule_commands.pause if data.status == "paused" else rule_commands.resume
        decided = await _refusals_told(
            ledger.execute(
                caller.user_id,
                lambda decision: command(decision, rule_id),
                event_id=new_id(),
                metadata=caller.metadata(),
            ),
            caller,
        )
        answer = await viewed(caller.user_id, await current(caller.user_id, rule_id))
        return Response(answer, headers=_headers(decided))

    @delete("/api/auto-replenish/{rule_id:uuid}", summary="End the rule; its history stays")
    async def delete_rule(
        request: AnyRequest, rule_id: FromPath[UUID], caller: NamedDependency[Caller]
    ) -> Response[None]:
        reject_unknown(request)
        decided = await _refusals_told(
            ledger.execute(
                caller.user_id,
                lambda decision: rule_commands.delete(decision, rule_id),
                event_id=new_id(),
                metadata=caller.metadata(),
            ),
            caller,
        )
        return Response(None, status_code=204, headers=_headers(decided))

    @get("/api/auto-replenish/history", summary="What all rules have done, the latest first")
    async def list_firings(
        request: AnyRequest,
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        limit: Limit = 50,
        cursor: Cursor = None,
    ) -> HistoryPage:
        reject_unknown(request, "limit", "cursor")
        return await _history_page(database, cursors, caller.user_id, None, limit, cursor)

    @get("/api/auto-replenish/{rule_id:uuid}/history", summary="What one rule has done, the latest first")
    async def list_rule_firings(
        request: AnyRequest,
        rule_id: FromPath[UUID],
        caller: NamedDependency[Caller],
        caught_up: NamedDependency[CaughtUp],
        limit: Limit = 50,
        cursor: Cursor = None,
    ) -> HistoryPage:
        reject_unknown(request, "limit", "cursor")
        page = await _history_page(database, cursors, caller.user_id, rule_id, limit, cursor)
        if not page.items and cursor is None and await rules.get_rule(database, caller.user_id, rule_id) is None:
            raise _rule_not_found()
        return page

    @post(
        "/api/auto-replenish/check",
        status_code=200,
        summary="Evaluate the rules now, or tell what they would do and why",
        opt=MOVES_MONEY,
    )
    async def check_rules(
        request: AnyRequest,
        caller: NamedDependency[Caller],
        data: JSONBody[CheckBody | None] = None,
        idempotency_key: Key = None,
    ) -> Response[CheckView]:
        reject_unknown(request)
        wanted = data or CheckBody()
        user_id, now = caller.user_id, datetime.now(UTC)
        if wanted.dry_run:
            state = await ledger.preview(user_id, now)
            try:
                chosen = _chosen(state.rules, wanted)
            except rule_commands.RuleNotFound as refusal:
                _tell(refusal, caller)
            return Response(CheckView(items=[_explained(rule, explain(state, rule, now)) for rule in chosen]))
        told: list[CheckItemView] = []

        def step(decision: Decision) -> None:
            told.clear()  # It may run again, on a fresher state.
            for rule in _chosen(decision.state.rules, wanted):
                verdict, before = explain(decision.state, rule, decision.now), len(decision.events)
                look(decision, (rule.rule_id,))
                fired = [event for event in decision.events[before:] if isinstance(event, RuleFired)]
                told.append(_explained(rule, verdict, fired[0] if fired else None))

        decided = await _refusals_told(
            ledger.execute(
                user_id,
                step,
                event_id=_id_of(caller, "check", idempotency_key),
                request_hash=sha256(b"POST /api/auto-replenish/check" + msgspec.json.encode(wanted)).digest(),
                metadata=caller.metadata(),
                now=now,
            ),
            caller,
        )
        items = _repeated(decided) if decided.duplicate else told
        return Response(CheckView(items=items), headers=_headers(decided))

    @post(
        "/api/auto-replenish/{rule_id:uuid}/backtest",
        status_code=200,
        summary="What the rule would have done over the caller's own past",
    )
    async def backtest_rule(
        request: AnyRequest, rule_id: FromPath[UUID], data: JSONBody[BacktestBody], caller: NamedDependency[Caller]
    ) -> BacktestView:
        reject_unknown(request)
        now = datetime.now(UTC)
        since, until = instant("from", data.since), min(instant("to", data.until, day_after=True), now)
        if not since < until:
            raise invalid_field("to", "must be later than from, and from in the past")
        if until - since > BACKTEST_MAX:
            raise invalid_field("from", "must be at most three years before to")
        rule = await current(caller.user_id, rule_id)
        history = await ledger.history(caller.user_id)
        # A busy customer's past takes a while: others' requests go on meanwhile.
        outcomes = await asyncio.to_thread(backtest, history, rule, since, until)
        currency = rule.terms.currency
        amounts = [outcome.event.amount_minor for outcome in outcomes if isinstance(outcome.event, RuleFired)]
        return BacktestView(
            rule_id=rule_id,
            since=since,
            until=until,
            currency=currency,
            fired=len(amounts),
            refused=sum(isinstance(outcome.event, RuleRefused) for outcome in outcomes),
            total=format_amount(sum(amounts), currency),
            truncated=len(outcomes) > BACKTEST_ITEMS_MAX,
            items=[BacktestItemView.of(outcome, currency) for outcome in outcomes[:BACKTEST_ITEMS_MAX]],
        )

    return [
        create_rule,
        list_rules,
        get_rule,
        change_rule,
        change_rule_status,
        delete_rule,
        list_firings,
        list_rule_firings,
        check_rules,
        backtest_rule,
    ]


async def _refusals_told(command: Awaitable[T], caller: Caller) -> T:
    """The command's outcome, or its refusal as the client sees it."""
    try:
        return await command
    except EventIdReused:
        raise Problem(422, "idempotency_key_reused", "This Idempotency-Key was used for another request") from None
    except Refusal as refusal:
        _tell(refusal, caller)


def _tell(refusal: Refusal, caller: Caller) -> NoReturn:
    match refusal:
        case rule_commands.RuleNotFound():
            raise _rule_not_found() from None
        case transfers.AccountNotFound():
            raise Problem(404, refusal.code, transfers.REFUSAL_DETAILS[refusal.code]) from None
        case transfers.StepUpRequired():
            amount = format_amount(refusal.amount_minor, refusal.currency)
            raise step_up_required(amount, refusal.currency, refusal.to_account_id, caller) from None
        case rule_commands.RuleCycle():
            detail = rule_commands.REFUSAL_DETAILS[refusal.code]
            raise Problem(422, refusal.code, detail, rule_ids=refusal.rule_ids) from None
    details = transfers.REFUSAL_DETAILS | rule_commands.REFUSAL_DETAILS
    raise Problem(422, refusal.code, details[refusal.code]) from None


def _body(terms: RuleTerms) -> bytes:
    """What makes two requests for a rule the same: its name in the clear, whatever it was sealed into."""
    return msgspec.json.encode(
        {key: value for key, value in msgspec.structs.asdict(terms).items() if key != "sealed_texts"}
    )


def _id_of(caller: Caller, purpose: str, key: str | None) -> UUID:
    """The id of what the request appends: the key's, or one of its own."""
    return new_id() if key is None else derived_id(caller.user_id, purpose, key_of(key))


def _headers(decided: Decided) -> dict[str, str]:
    if not decided.events:
        return {}
    headers = {CONSISTENCY_HEADER: consistency_token(decided.event_id)}
    return headers | {REPLAYED_HEADER: "true"} if decided.duplicate else headers


def _chosen(book: RuleBook, wanted: CheckBody) -> Sequence[Rule]:
    if wanted.rule_id is None:
        return list(book.rules.values())
    rule = book.rules.get(wanted.rule_id)
    if rule is None:
        raise rule_commands.RuleNotFound()
    return [rule]


def _explained(rule: Rule, verdict: Verdict, fired: RuleFired | None = None) -> CheckItemView:
    return CheckItemView(
        rule_id=rule.rule_id,
        would_fire=verdict.transfer is not None,
        fired=fired is not None,
        amount=optional_amount(verdict.amount_minor, rule.terms.currency),
        currency=rule.terms.currency,
        reason=verdict.code or verdict.reason,
        available=optional_amount(verdict.available_minor, rule.terms.currency),
        transfer_id=fired.transfer_id if fired else None,
    )


def _repeated(decided: Decided) -> list[CheckItemView]:
    """The answer to a check asked for again: what the first one did."""
    return [
        CheckItemView(
            rule_id=event.rule_id,
            would_fire=isinstance(event, RuleFired),
            fired=isinstance(event, RuleFired),
            amount=format_amount(event.amount_minor, event.currency),
            currency=event.currency,
            reason="fired" if isinstance(event, RuleFired) else event.code,
            available=None if isinstance(event, RuleFired) else optional_amount(event.available_minor, event.currency),
            transfer_id=event.transfer_id if isinstance(event, RuleFired) else None,
        )
        for event in decided.events
        if isinstance(event, RuleFired | RuleRefused)
    ]


async def _history_page(
    database: asyncpg.Pool, cursors: CursorCodec, user_id: UUID, rule_id: UUID | None, limit: int, cursor: str | None
) -> HistoryPage:
    purpose = f"rule history {rule_id or ''}"
    before = cursors.decode(cursor, int, purpose=purpose, caller=user_id) if cursor is not None else LAST
    rows = await rules.list_history(database, user_id, rule_id, before=before, limit=limit + 1)
    page = rows[:limit]
    more = len(rows) > limit
    return HistoryPage(
        items=[_history_item(row) for row in page],
        next_cursor=cursors.encode(page[-1].position, purpose=purpose, caller=user_id) if more else None,
    )


def _history_item(row: HistoryRow) -> HistoryItemView:
    def amount(minor: int | None) -> str | None:
        return None if minor is None or row.currency is None else format_amount(minor, row.currency)

    return HistoryItemView(
        rule_id=row.rule_id,
        version=row.version,
        occurrence=row.occurrence,
        outcome=row.outcome,
        reason=row.reason,
        transfer_id=row.transfer_id,
        amount=amount(row.amount_minor),
        currency=row.currency,
        available=amount(row.available_minor),
        missed=row.missed,
        retry_at=row.retry_at,
        at=row.at,
    )


def _detail(row: RuleRow) -> RuleDetailView:
    return RuleDetailView(
        **msgspec.structs.asdict(rule_view(row.rule)),
        created_at=row.created_at,
        changed_at=row.changed_at,
        last_fired_at=row.last_fired_at,
        executions=row.executions,
    )


def _rule_not_found() -> Problem:
    return Problem(404, rule_commands.RuleNotFound.code, rule_commands.REFUSAL_DETAILS[rule_commands.RuleNotFound.code])
