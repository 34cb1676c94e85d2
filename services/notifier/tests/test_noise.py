"""How much quieter it gets, by scenario (`noise.py`)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from noise import SCENARIOS, measured

MISSION_PERCENT = 80


@pytest.mark.parametrize("name", SCENARIOS)
def test_noise_by_scenario(name: str) -> None:
    scenario = SCENARIOS[name]
    row = measured(scenario)
    assert row.raw >= row.deduplicated >= row.grouped >= row.throttled >= row.deferred > 0
    assert row.reduction_percent >= scenario.at_least_percent
    assert (row.reduction_percent >= MISSION_PERCENT) == (not scenario.why), "a miss is explained, and nothing else"
