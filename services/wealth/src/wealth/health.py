"""The health score: five factors from 0 to 100, each a piecewise linear curve, weighted. Pure.

A factor whose data is missing is left out: the others' weights are scaled up to 100, and `confidence` says how
much of the weight rests on data. Without any factor there is no score; a grade needs two: somebody of whom one account
is known has spread nothing yet, which is no reason for an F.
"""

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from typing import Literal, NamedTuple

Grade = Literal["A+", "A", "B", "C", "D", "F"]

Curve = tuple[tuple[float, float], ...]
"""Points (value, score) with rising values; straight lines between them, flat outside."""


class FactorRule(NamedTuple):
    """One row of the table: how a figure becomes a score."""

    name: str
    weight: int
    unit: str
    """How the value reads: `percent`, `months` or `holdings`."""
    curve: Curve
    source: str
    """Where the marks of the curve come from."""
    advice: str
    """What would raise it; `{target}` is the value of the curve's next mark."""


FACTORS: tuple[FactorRule, ...] = (
    FactorRule(
        "savings_rate", 25, "percent",
        ((-20, 0), (0, 20), (10, 50), (20, 80), (35, 100)),
        "The 50/30/20 rule (Warren and Tyagi, All Your Worth, 2005): 20 % of income saved is sound",
        "Save {target} of your income",
    ),
    FactorRule(
        "debt_to_income", 20, "percent",
        ((0, 100), (20, 85), (36, 60), (43, 40), (60, 0)),
        "The 28/36 rule of mortgage lenders and the 43 % bound of the US Qualified Mortgage rule (CFPB, 2013)",
        "Bring your EMIs down to {target} of your income",
    ),
    FactorRule(
        "diversification", 20, "holdings",
        ((1, 10), (2, 45), (4, 80), (8, 100)),
        "Effective number of holdings 1 / Σ share² (inverse Herfindahl-Hirschman index)",
        "Spread your money as evenly as over {target}",
    ),
    FactorRule(
        "trading_performance", 20, "percent",
        ((-40, 0), (-10, 35), (0, 55), (7, 75), (15, 90), (30, 100)),
        "Marks at no loss, a deposit's 7 % and the long-run 12-15 % of Indian large caps (Nifty 50 TRI)",
        "A trading return of {target} over a year",
    ),
    FactorRule(
        "emergency_fund", 15, "months",
        ((0, 0), (1, 25), (3, 65), (6, 95), (9, 100)),
        "Three to six months of expenses at hand (RBI, BE(A)WARE and Financial Awareness Messages; CFPB)",
        "Keep {target} of expenses at hand",
    ),
)  # fmt: skip
"""The five factors and their weights."""

GRADES: tuple[tuple[int, Grade], ...] = ((90, "A+"), (80, "A"), (70, "B"), (60, "C"), (50, "D"), (0, "F"))

GRADED_FROM = 2
"""How many factors a grade rests on at least."""


class Measured(NamedTuple):
    """A factor's figure, or why it is missing."""

    value: float | None
    explanation: str
    """The computation in words, or what is missing."""


class Factor(NamedTuple):
    """A factor in the answer. `contribution` is in hundredths of a point, of a score out of 100."""

    rule: FactorRule
    value: float | None
    score: int | None
    effective_weight: float
    """Its share of 100 after the missing ones have been left out."""
    contribution_hundredths: int | None
    explanation: str
    raise_to: str | None
    """What would raise it; None at the top or where data is missing."""
    raise_points: Decimal | None
    """By how many points of the whole score that would be."""


class Health(NamedTuple):
    """The score is the sum of the contributions, rounded half up. `reason` says why score or grade is None."""

    score: int | None
    grade: Grade | None
    confidence_percent: int
    factors: tuple[Factor, ...]
    reason: str | None = None

    @property
    def exact_hundredths(self) -> int:
        return sum(factor.contribution_hundredths or 0 for factor in self.factors)


def on_curve(curve: Curve, value: float) -> float:
    """The score of `value`: linear between the marks, flat beyond the first and the last."""
    if value <= curve[0][0]:
        return curve[0][1]
    for (left, low), (right, high) in pairwise(curve):
        if value <= right:
            return low + (high - low) * (value - left) / (right - left)
    return curve[-1][1]


def grade_of(score: int) -> Grade:
    return next(grade for least, grade in GRADES if score >= least)


def assess(measured: dict[str, Measured], rules: Sequence[FactorRule] = FACTORS) -> Health:
    """The health of a customer whose factors have these figures."""
    known = sum(rule.weight for rule in rules if measured[rule.name].value is not None)
    factors = tuple(_factor(rule, measured[rule.name], known) for rule in rules)
    if known == 0:
        return Health(None, None, 0, factors, "nothing is known that a score could rest on")
    exact = sum(factor.contribution_hundredths or 0 for factor in factors)
    score = (exact + 50) // 100
    graded = sum(factor.value is not None for factor in factors) >= GRADED_FROM
    return Health(
        score,
        grade_of(score) if graded else None,
        known * 100 // sum(rule.weight for rule in rules),
        factors,
        None if graded else "one factor alone makes no grade",
    )


def _factor(rule: FactorRule, measured: Measured, known: int) -> Factor:
    value = measured.value
    if value is None:
        return Factor(rule, None, None, 0.0, None, measured.explanation, None, None)
    score = round(on_curve(rule.curve, value))
    hundredths = _contribution(rule.weight, score, known)
    better = [mark for mark in rule.curve if round(mark[1]) > score]
    target, points = None, None
    if better:
        rising = rule.curve[-1][1] > rule.curve[0][1]
        mark = better[0] if rising else better[-1]
        target = rule.advice.format(target=in_words(rule.unit, mark[0]))
        points = Decimal(_contribution(rule.weight, round(mark[1]), known) - hundredths) / 100
    return Factor(rule, value, score, rule.weight * 100 / known, hundredths, measured.explanation, target, points)


def _contribution(weight: int, score: int, known: int) -> int:
    """Hundredths of a point: weight × score of the weight that is known, rounded half up."""
    return int((Decimal(weight * score * 100) / known).quantize(Decimal(1), rounding=ROUND_HALF_UP))


def in_words(unit: str, value: float) -> str:
    """A factor's figure as a person reads it."""
    text = f"{value:.1f}".removesuffix(".0")
    return {"percent": f"{text}%", "months": f"{text} months", "holdings": f"{text} holdings"}[unit]
