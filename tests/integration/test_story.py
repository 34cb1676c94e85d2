"""The demo against the whole running product: it comes to its end, also the second time."""

import subprocess
from collections.abc import Callable

import pytest


@pytest.mark.integration
def test_the_story_is_told_twice(
    first_story: subprocess.CompletedProcess[str], tell_story: Callable[[], subprocess.CompletedProcess[str]]
) -> None:
    assert "registers with Sangam" in first_story.stdout
    assert "links BFC-1001" in first_story.stdout
    assert "links VY-2001" in first_story.stdout

    second = tell_story()
    assert "is registered with Sangam already" in second.stdout
    assert "BFC and Vyomo are linked already" in second.stdout

    for run in (first_story, second):
        for part in ("ledger.transfer.completed", "Idempotent-Replayed: true", "One net worth", "One inbox"):
            assert part in run.stdout
