"""Each guard is where its list says. Whether a test misses it: `make guards`, which takes long."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from guard import Guard
from guards import GUARDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.against)
def test_the_code_reads_so(guard: Guard) -> None:
    assert (ROOT / guard.file).read_text().count(guard.guarded) == 1
    for test in guard.tests:
        path, _, name = test.partition("::")
        assert not name or f"def {name}(" in (ROOT / path).read_text(), test
