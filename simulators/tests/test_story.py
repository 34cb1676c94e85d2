"""The demo against the whole running product: it comes to its end, also the second time."""

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest


def _tell(sangam: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulators.demo", "--env", str(sangam.directory / "local.env")],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.fixture
def quiet_afterwards(sangam: Any) -> Iterator[None]:
    """The demo leaves a live feed on; other tests share this product."""
    yield
    for platform in ("bfc", "vyomo"):
        request = urllib.request.Request(
            sangam.url(f"simulator-{platform}") + "/control/live",
            data=b'{"every_s": 0}',
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        urllib.request.urlopen(request, timeout=10).close()


@pytest.mark.integration
@pytest.mark.usefixtures("quiet_afterwards")
def test_the_story_is_told_twice(sangam: Any) -> None:
    first = _tell(sangam)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "registers with Sangam" in first.stdout
    assert "links BFC-1001" in first.stdout
    assert "links VY-2001" in first.stdout

    second = _tell(sangam)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "is registered with Sangam already" in second.stdout
    assert "BFC and Vyomo are linked already" in second.stdout

    for run in (first, second):
        for part in ("ledger.transfer.completed", "Idempotent-Replayed: true", "One net worth", "One inbox"):
            assert part in run.stdout
