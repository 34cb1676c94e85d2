"""The health score: curves, missing data, advice that comes true."""

from itertools import pairwise

import pytest
from wealth.health import FACTORS, GRADES, Measured, assess, grade_of, on_curve

NAMES = [rule.name for rule in FACTORS]
WEIGHTS = {
    "savings_rate": 25,
    "debt_to_income": 20,
    "diversification": 20,
    "trading_performance": 20,
    "emergency_fund": 15,
}


def measured(**values: float) -> dict[str, Measured]:
    return {name: Measured(values.get(name), "because") for name in NAMES}


def test_the_weights() -> None:
    assert {rule.name: rule.weight for rule in FACTORS} == WEIGHTS
    for rule in FACTORS:
        assert all(left[0] < right[0] for left, right in pairwise(rule.curve)), rule.name
        assert rule.source


@pytest.mark.parametrize(
    ("least", "most", "grade"),
    [(90, 100, "A+"), (80, 89, "A"), (70, 79, "B"), (60, 69, "C"), (50, 59, "D"), (0, 49, "F")],
)
def test_grades(least: int, most: int, grade: str) -> None:
    assert (grade_of(least), grade_of(most)) == (grade, grade)
    assert len(GRADES) == 6


@pytest.mark.parametrize(("value", "score"), [(-100, 0), (-20, 0), (0, 20), (5, 35), (20, 80), (27.5, 90), (99, 100)])
def test_a_curve_is_linear_between_its_marks(value: float, score: float) -> None:
    assert on_curve(FACTORS[0].curve, value) == score


def test_contributions_sum_to_the_score() -> None:
    health = assess(
        measured(savings_rate=13.3, debt_to_income=31, diversification=2.7, trading_performance=4, emergency_fund=2)
    )
    assert health.score is not None
    assert health.score == (health.exact_hundredths + 50) // 100
    assert health.exact_hundredths == sum(factor.contribution_hundredths or 0 for factor in health.factors)
    assert health.confidence_percent == 100


def test_missing_data_is_reweighted_and_lowers_the_confidence() -> None:
    full = assess(
        measured(savings_rate=35, debt_to_income=0, diversification=8, trading_performance=30, emergency_fund=9)
    )
    assert (full.score, full.grade) == (100, "A+")
    part = assess(measured(savings_rate=35, emergency_fund=9))
    assert (part.score, part.grade, part.confidence_percent) == (100, "A+", 40)
    missing = [factor for factor in part.factors if factor.score is None]
    assert [factor.rule.name for factor in missing] == ["debt_to_income", "diversification", "trading_performance"]
    assert all(factor.explanation for factor in missing)


def test_nothing_known_is_no_grade() -> None:
    nothing = assess(measured())
    assert (nothing.score, nothing.grade, nothing.confidence_percent) == (None, None, 0)
    assert nothing.reason


@pytest.mark.parametrize("name", NAMES)
def test_one_factor_alone_is_no_grade(name: str) -> None:
    one = assess(measured(**{name: 1}))
    assert (one.grade, one.score) == (None, one.factors[NAMES.index(name)].score)
    assert one.reason
    other = next(each for each in NAMES if each != name)
    assert assess(measured(**{name: 1, other: 1})).grade is not None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [-50.0, -5.0, 0.0, 1.5, 5.0, 18.0, 40.0, 55.0, 100.0])
def test_following_the_advice_gives_the_points_it_promises(name: str, value: float) -> None:
    others = {other: Measured(10.0, "") for other in NAMES if other != name}
    before = assess(others | {name: Measured(value, "")})
    factor = next(f for f in before.factors if f.rule.name == name)
    if factor.raise_points is None:
        assert factor.score == max(round(score) for _, score in factor.rule.curve)
        return
    assert factor.raise_to
    assert factor.raise_points > 0
    target = next(
        mark
        for mark, _ in (factor.rule.curve if factor.rule.curve[-1][1] else factor.rule.curve[::-1])
        if on_curve(factor.rule.curve, mark) > (factor.score or 0)
    )
    after = assess(others | {name: Measured(target, "")})
    assert after.exact_hundredths - before.exact_hundredths == factor.raise_points * 100
