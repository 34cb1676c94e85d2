"""The rules that find insights: each takes a customer's facts and gives what it finds, with evidence. Pure.

They state facts and a rule, never a forecast; every answer labels them as automated.
"""

from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from math import log10
from typing import NamedTuple
from urllib.parse import quote

from chassis.money import format_amount, rupees
from events.contracts.wealth import Action, Evidence, InsightKind, InsightPriority

from wealth import behaviour, tax
from wealth.insights import Insight, Thresholds, level_of
from wealth.ledger_lines import IST
from wealth.networth import CURRENCY, NetWorth
from wealth.picture import ItemNow, Picture

_PRIORITY = {"low": 1.0, "medium": 2.0, "high": 3.0}
NO_ADVICE = "General information, no tax advice."
_LIQUID = ("savings", "current")
_POSITIONS = ("option", "future", "equity")


class Facts(NamedTuple):
    """A customer's picture with what several rules need of it."""

    picture: Picture
    worth: NetWorth
    months: list[behaviour.Month]
    expenses_minor: int | None
    """Of a typical month."""
    gains: tax.YearGains
    lots: list[tax.Lot]
    rules: Thresholds


def facts_of(picture: Picture, worth: NetWorth, rules: Thresholds) -> Facts:
    months = behaviour.months_of(picture.months)
    gains, held = tax.year_gains(picture.trades, picture.today)
    return Facts(
        picture=picture,
        worth=worth,
        months=months,
        expenses_minor=behaviour.typical_expenses(months, picture.today),
        gains=gains,
        lots=tax.open_lots(held, picture.ours(), picture.fund_purchases),
        rules=rules,
    )


def find(facts: Facts) -> list[Insight]:
    """Everything the rules find."""
    return [insight for rule in RULES for insight in rule(facts)]


def _insight(
    facts: Facts,
    rule: str,
    subject: str,
    kind: InsightKind,
    priority: InsightPriority,
    title: str,
    body: str,
    evidence: list[Evidence],
    *,
    size_minor: int = 0,
    effect_minor: int | None = None,
    action: Action | None = None,
    expires_at: datetime | None = None,
    strength: float = 0.0,
) -> Insight:
    """`size_minor` sets the level. Importance: priority, then the effect against a usual month's expenses, then how
    unusual it is for this customer (`strength`, robust standard deviations)."""
    against_usual = (effect_minor or 0) / max(facts.expenses_minor or 0, 10_000_00)
    importance = 10 * _PRIORITY[priority] + min(3 * log10(1 + 10 * max(against_usual, 0.0)), 6.0)
    importance += min(strength, 20.0) / 10
    return Insight(
        rule, subject, level_of(size_minor), kind, priority, title, body, tuple(evidence), effect_minor, action,
        expires_at, importance,
    )  # fmt: skip


def _see(figure: str, label: str = "See how this is made up") -> Action:
    return Action(label=label, method="GET", href=f"/api/wealth/explain/{figure}")


def _search(label: str) -> Action:
    return Action(label="See its trades", method="GET", href=f"/api/search?q={quote(label)}")


def _evidence(item: ItemNow, fact: str, minor: int | None = None) -> Evidence:
    return Evidence(fact=fact, value=rupees(item.value_minor if minor is None else minor), event_id=item.event_id)


def idle_cash(facts: Facts) -> Iterator[Insight]:
    """Cash beyond some months of expenses earns the savings rate where a deposit earns more."""
    picture, rules = facts.picture, facts.rules
    cash = [item for item in picture.ours() if item.asset_class in _LIQUID]
    if facts.expenses_minor is None or not cash:
        return
    total = sum(item.value_minor for item in cash)
    reserve = facts.expenses_minor * rules.emergency_fund_months
    idle = total - reserve
    if idle < rules.idle_cash_minor:
        return
    effect = tax.percent_of(idle, _exact(rules.deposit_rate_percent) - _exact(rules.savings_rate_percent))
    source = max(cash, key=lambda item: item.value_minor)
    wallets = [item for item in picture.ours() if item.asset_class == "trading_wallet"]
    action = _see("banking")
    movable = min(idle, source.value_minor)
    if wallets and movable > 0:
        body = {
            "from_account_id": source.item.removeprefix("account:"),
            "to_account_id": wallets[0].item.removeprefix("account:"),
            "amount": format_amount(movable, CURRENCY),
            "currency": CURRENCY,
        }
        action = Action(label="Preview a transfer", method="POST", href="/api/transfers/preview", body=body)
    months, deposit, saving = rules.emergency_fund_months, rules.deposit_rate_percent, rules.savings_rate_percent
    yield _insight(
        facts, "idle_cash", "banking", "opportunity", "medium",
        f"{rupees(idle)} beyond {months} months of expenses",
        f"You hold {rupees(total)} in cash; {months} months of your usual expenses are {rupees(reserve)}. At "
        f"{deposit:g}% in a deposit instead of {saving:g}%, the rest would earn about {rupees(effect)} more a year.",
        [_evidence(item, f"balance of {item.label}") for item in cash]
        + [Evidence(fact="usual monthly expenses", value=rupees(facts.expenses_minor))],
        size_minor=idle, effect_minor=effect, action=action,
    )  # fmt: skip


def _exact(percent: float) -> Decimal:
    """A threshold as it is written: money is never multiplied by a float."""
    return Decimal(str(percent))


def _paid(item: ItemNow) -> int:
    """What an open position cost: quantity × average price, as a positive sum."""
    return abs(int(item.quantity * item.cost))


def _unrealized(item: ItemNow) -> int:
    return int(item.quantity * (item.price - item.cost))


def positions_up_and_down(facts: Facts) -> Iterator[Insight]:
    """Open positions that are up or down by more than a threshold."""
    rules = facts.rules
    for item in facts.picture.ours():
        if item.asset_class not in _POSITIONS or _paid(item) < rules.position_minor:
            continue
        gain, paid = _unrealized(item), _paid(item)
        percent = 100 * gain / paid
        evidence = [
            _evidence(item, f"{item.label} at cost", paid),
            _evidence(item, f"unrealised profit or loss of {item.label}", gain),
        ]
        if percent >= rules.profit_percent:
            yield _insight(
                facts, "profit_booking", item.label, "profit_booking", "medium",
                f"{item.label} is up {percent:.1f}%",
                f"Your position of {rupees(paid)} stands {rupees(gain)} above cost, past your mark of "
                f"{rules.profit_percent:g}%. Selling would realise that, before charges and tax.",
                evidence, size_minor=gain, effect_minor=gain, action=_search(item.label),
            )  # fmt: skip
        elif percent <= -rules.loss_percent:
            yield _insight(
                facts, "loss_warning", item.label, "loss_warning", "high",
                f"{item.label} is down {-percent:.1f}%",
                f"Your position of {rupees(paid)} stands {rupees(-gain)} below cost, past your mark of "
                f"{rules.loss_percent:g}%.",
                evidence, size_minor=-gain, effect_minor=-gain, action=_search(item.label),
            )  # fmt: skip


def concentration(facts: Facts) -> Iterator[Insight]:
    """One underlying makes up most of what is invested."""
    rules = facts.rules
    by_underlying: dict[str, list[ItemNow]] = {}
    for item in facts.picture.ours():
        if item.asset_class in ("option", "equity", "fund") and item.value_minor > 0:
            by_underlying.setdefault(item.underlying or item.label, []).append(item)
    sums = {name: sum(item.value_minor for item in items) for name, items in by_underlying.items()}
    invested = sum(sums.values()) + max(facts.worth.fixed_deposits or 0, 0)
    for name, amount in sums.items():
        percent = 100 * amount / invested
        if percent < rules.concentration_percent or amount < rules.concentration_minor:
            continue
        shown = by_underlying[name][0].label
        beyond = amount - tax.percent_of(invested, _exact(rules.concentration_percent))
        yield _insight(
            facts, "concentration", name, "loss_warning", "medium",
            f"{percent:.0f}% of your investments is in {shown}",
            f"{rupees(amount)} of {rupees(invested)} depends on {shown}; the mark is "
            f"{rules.concentration_percent:g}%. {rupees(beyond)} lies beyond it.",
            [_evidence(item, f"value of {item.label}") for item in by_underlying[name]]
            + [Evidence(fact="invested", value=rupees(invested))],
            size_minor=amount, effect_minor=beyond, action=_see("investments"),
        )  # fmt: skip


def deposits_maturing(facts: Facts) -> Iterator[Insight]:
    """A fixed deposit is about to be paid out."""
    picture = facts.picture
    for deposit in picture.deposits:
        left = (deposit.matures_on - picture.today).days
        if not 0 <= left <= facts.rules.deposit_matures_in_days:
            continue
        account = next((item for item in picture.ours() if item.label == deposit.deposit_id), None)
        if account is None or account.value_minor <= 0:
            continue
        yearly = tax.percent_of(deposit.principal_minor, deposit.rate_percent)
        yield _insight(
            facts, "deposit_maturing", deposit.deposit_id, "opportunity", "medium",
            f"A deposit of {rupees(deposit.principal_minor)} matures on {deposit.matures_on:%d %b %Y}",
            f"It earns {deposit.rate_percent.normalize():f}%. Placed again at the same rate it would earn about "
            f"{rupees(yearly)} a year; left in savings, less.",
            [_evidence(account, "principal", deposit.principal_minor),
             Evidence(fact="rate", value=f"{deposit.rate_percent.normalize():f}%", event_id=account.event_id)],
            size_minor=deposit.principal_minor, effect_minor=yearly, action=_see("fixed_deposits"),
            expires_at=_end_of(deposit.matures_on),
        )  # fmt: skip


def long_term_exemption(facts: Facts) -> Iterator[Insight]:
    """Long-term gains that could be realised free of tax before the financial year ends."""
    today = facts.picture.today
    rule, year_end = tax.rule_on(today), tax.financial_year(today)[1]
    used = max(facts.gains.long_term_minor, 0)
    left = rule.exempt_minor - used
    lots = [lot for lot in facts.lots if lot.gain_minor > 0 and tax.is_long_term(lot.bought_on, today)]
    gain = sum(lot.gain_minor for lot in lots)
    usable = min(gain, left)
    if usable < facts.rules.long_term_gain_minor:
        return
    effect = tax.percent_of(usable, rule.long_term_percent)
    yield _insight(
        facts, "long_term_exemption", f"FY{year_end.year}", "tax", "medium" if today.month in (1, 2, 3) else "low",
        f"{rupees(usable)} of long-term gains can be realised free of tax",
        f"Long-term gains on shares and equity funds are exempt up to {rupees(rule.exempt_minor)} a financial year; "
        f"{rupees(used)} is used. Gains of {rupees(usable)} realised by {year_end:%d %b %Y} would save "
        f"{rupees(effect)} of tax at {rule.long_term_percent.normalize():f}% later. {NO_ADVICE}",
        [Evidence(fact="exempt a year", value=rupees(rule.exempt_minor)),
         Evidence(fact="realised this year", value=rupees(used)),
         Evidence(fact="unrealised long-term gains", value=rupees(gain))],
        size_minor=usable, effect_minor=effect, action=_see("realized_pnl"), expires_at=_end_of(year_end),
    )  # fmt: skip


def loss_harvesting(facts: Facts) -> Iterator[Insight]:
    """Unrealised losses that could be set against gains that are taxed this year."""
    today = facts.picture.today
    rule, year_end = tax.rule_on(today), tax.financial_year(today)[1]
    taxable_long = max(facts.gains.long_term_minor - rule.exempt_minor, 0)
    short = max(facts.gains.short_term_minor, 0)
    lots = [lot for lot in facts.lots if lot.gain_minor < 0]
    loss = -sum(lot.gain_minor for lot in lots)
    usable = min(loss, taxable_long + short)
    if usable < facts.rules.harvest_loss_minor:
        return
    # A short-term loss is set off against short-term gains first: they are taxed higher (s. 70).
    against_short = min(usable, short)
    effect = tax.percent_of(against_short, rule.short_term_percent)
    effect += tax.percent_of(usable - against_short, rule.long_term_percent)
    yield _insight(
        facts, "loss_harvesting", f"FY{year_end.year}", "tax", "medium",
        f"Losses of {rupees(usable)} could be set against this year's gains",
        f"You realised gains of {rupees(taxable_long + short)} that are taxed this year and hold positions "
        f"{rupees(loss)} below cost. Realising {rupees(usable)} of that by {year_end:%d %b %Y} would lower the tax by "
        f"about {rupees(effect)}. {NO_ADVICE}",
        [Evidence(fact="taxable gains this year", value=rupees(taxable_long + short)),
         Evidence(fact="unrealised losses", value=rupees(loss))],
        size_minor=usable, effect_minor=effect, action=_see("open_positions"), expires_at=_end_of(year_end),
    )  # fmt: skip


def derivatives_turnover(facts: Facts) -> Iterator[Insight]:
    """Trading in derivatives is business income, and its turnover may call for an audit."""
    today = facts.picture.today
    turnover, profit = facts.gains.derivative_turnover_minor, facts.gains.derivative_profit_minor
    if turnover <= 0:
        return
    year_end, limit = tax.financial_year(today)[1], tax.audit_turnover_on(today)
    near = turnover * 100 >= limit * facts.rules.turnover_share_of_audit_percent
    yield _insight(
        facts, "derivatives_turnover", f"FY{year_end.year}", "tax", "high" if near else "low",
        f"Your turnover in futures and options is {rupees(turnover)} this year",
        f"Profits and losses of each trade, taken as positive, sum to {rupees(turnover)}; the audit limit is "
        f"{rupees(limit)}. The result after charges is {rupees(profit, plus=True)} and counts as business income. "
        f"{NO_ADVICE}",
        [Evidence(fact="turnover", value=rupees(turnover)),
         Evidence(fact="profit or loss after charges", value=rupees(profit, plus=True))],
        size_minor=turnover, action=_see("realized_pnl"), expires_at=_end_of(year_end),
    )  # fmt: skip


def advance_tax(facts: Facts) -> Iterator[Insight]:
    """An advance-tax date is near, and this year's trading made gains."""
    today = facts.picture.today
    due, instalment = tax.next_instalment(today)
    if (due - today).days > facts.rules.advance_tax_in_days:
        return
    rule, gains = tax.rule_on(today), facts.gains
    on_gains = tax.percent_of(max(gains.long_term_minor - rule.exempt_minor, 0), rule.long_term_percent)
    on_gains += tax.percent_of(max(gains.short_term_minor, 0), rule.short_term_percent)
    if on_gains < tax.ADVANCE_TAX_FROM_MINOR and gains.derivative_profit_minor <= 0:
        return
    part = on_gains * instalment.percent // 100
    yield _insight(
        facts, "advance_tax", due.isoformat(), "tax", "high",
        f"Advance tax: {instalment.percent}% of the year's tax is due by {due:%d %b %Y}",
        f"On this year's realised gains the tax is about {rupees(on_gains)}; {instalment.percent}% of it is "
        f"{rupees(part)}. Profit from futures and options of {rupees(max(gains.derivative_profit_minor, 0))} is taxed "
        f"at your slab and comes on top. {NO_ADVICE}",
        [Evidence(fact="tax on realised gains", value=rupees(on_gains)),
         Evidence(fact="profit from futures and options", value=rupees(max(gains.derivative_profit_minor, 0)))],
        effect_minor=part or None, action=_see("realized_pnl"), expires_at=_end_of(due),
    )  # fmt: skip


def spending(facts: Facts) -> Iterator[Insight]:
    """A category costs far more this month (or did last month) than is usual for this customer."""
    picture, rules = facts.picture, facts.rules
    this_month = picture.today.replace(day=1)
    seen = set()
    for month in (this_month, behaviour.month_before(this_month)):
        for found in behaviour.spending_anomalies(
            picture.months, month, z_min=rules.anomaly_z, excess_minor_min=rules.anomaly_excess_minor
        ):
            if found.category in ("rent", "emi", "tax") or found.category in seen:
                continue
            seen.add(found.category)
            excess = found.spent_minor - found.usual_minor
            largest = sorted(
                (posting for posting in picture.postings if posting.category == found.category
                 and posting.amount_minor < 0 and (posting.at + IST).date().replace(day=1) == month),
                key=lambda posting: posting.amount_minor,
            )[:3]  # fmt: skip
            yield _insight(
                facts, "spending_anomaly", f"{found.category}:{month:%Y-%m}", "loss_warning", "medium",
                f"{rupees(excess)} more than usual on {found.category} in {month:%B}",
                f"You spent {rupees(found.spent_minor)} on {found.category} in {month:%B %Y}; your usual month is "
                f"{rupees(found.usual_minor)}.",
                [Evidence(fact="largest payment", value=rupees(-posting.amount_minor), event_id=posting.event_id)
                 for posting in largest]
                + [Evidence(fact=f"usual month on {found.category}", value=rupees(found.usual_minor))],
                # One a month and category: more of the same is no news.
                effect_minor=excess, strength=found.z,
                action=Action(label="See the payments", method="GET",
                              href=f"/api/transactions?category={quote(found.category)}&from={month.isoformat()}"),
                expires_at=_end_of(behaviour.next_month(behaviour.next_month(month)) - timedelta(days=1)),
            )  # fmt: skip


def salary(facts: Facts) -> Iterator[Insight]:
    """A salary that came every month and stopped, or has come for long."""
    picture, rules = facts.picture, facts.rules
    today, months = picture.today, facts.months
    this_month = today.replace(day=1)
    past = behaviour.full_months(months, today)
    came = {month.month for month in months if month.salary_minor > 0}
    usual = past[-4:] if len(past) >= 3 else []
    if usual and sum(month.salary_minor > 0 for month in usual) >= len(usual) - 1:
        missing = [month.month for month in past[-1:] if month.month not in came]
        if today.day >= rules.salary_due_day and this_month not in came:
            missing.append(this_month)
        for month in missing:
            amount = int(sorted(m.salary_minor for m in usual)[len(usual) // 2])
            yield _insight(
                facts, "salary_missed", f"{month:%Y-%m}", "loss_warning", "high",
                f"No salary has come in {month:%B}",
                f"A salary of about {rupees(amount)} came in the months before; none was posted in {month:%B %Y}.",
                [Evidence(fact="usual salary", value=rupees(amount))],
                effect_minor=amount,
                action=Action(label="See your salaries", method="GET", href="/api/transactions?category=salary"),
                expires_at=_end_of(behaviour.next_month(behaviour.next_month(month)) - timedelta(days=1)),
            )  # fmt: skip
    streak = behaviour.salary_streak(months, today)
    step = streak // rules.salary_streak_months * rules.salary_streak_months
    if step:
        yield _insight(
            facts, "salary_streak", f"{step}", "achievement", "low",
            f"{step} months of salary in a row",
            f"Your salary has come every month for {streak} months.",
            [Evidence(fact="months in a row", value=str(streak))],
            action=Action(label="See your salaries", method="GET", href="/api/transactions?category=salary"),
        )  # fmt: skip


def achievements(facts: Facts) -> Iterator[Insight]:
    """Marks worth celebrating: a full emergency fund, a net worth of so many lakh."""
    picture, rules = facts.picture, facts.rules
    liquid = picture.sum_of("savings", "current", "fixed_deposit")
    if facts.expenses_minor and liquid >= facts.expenses_minor * rules.emergency_fund_months:
        months = rules.emergency_fund_months
        yield _insight(
            facts, "emergency_fund_full", f"{months}", "achievement", "low",
            f"Your emergency fund covers {months} months",
            f"{rupees(liquid)} at hand covers {months} months of your usual expenses of "
            f"{rupees(facts.expenses_minor)}.",
            [Evidence(fact="at hand", value=rupees(liquid)),
             Evidence(fact="usual monthly expenses", value=rupees(facts.expenses_minor))],
            action=_see("health"),
        )  # fmt: skip
    total = facts.worth.total
    mark = max((mark for mark in MARKS_MINOR if total is not None and total >= mark), default=None)
    if mark is not None and total is not None:
        yield _insight(
            facts, "net_worth_mark", f"{mark}", "achievement", "low",
            f"Your net worth has passed {rupees(mark)}",
            f"It stands at {rupees(total)} today.",
            [Evidence(fact="net worth", value=rupees(total))],
            action=_see("total"),
        )  # fmt: skip


MARKS_MINOR = tuple(lakhs * 1_00_000_00 for lakhs in (1, 5, 10, 25, 50, 100, 250, 500, 1000))
RULES: tuple[Callable[[Facts], Iterator[Insight]], ...] = (
    idle_cash, positions_up_and_down, concentration, deposits_maturing, long_term_exemption, loss_harvesting,
    derivatives_turnover, advance_tax, spending, salary, achievements,
)  # fmt: skip
"""All of them. A new rule is a function here, with a test."""


def _end_of(day: date) -> datetime:
    """Midnight (IST) after `day`."""
    return datetime(day.year, day.month, day.day, tzinfo=timezone(IST)) + timedelta(days=1)
