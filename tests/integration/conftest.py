"""What the tests of the whole product share."""

import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from stack import Stack

# `customers` and `truth`, shared by the tests of this folder, and what is shared with others.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

Told = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def tell_story(sangam: "Stack") -> Callable[[], Told]:
    """Plays the demo on the shared product. The live feed that the demo leaves on is ended, since it would move the
    money of every customer that other tests make."""

    def tell() -> Told:
        demo = [sys.executable, "-m", "simulators.demo", "--env", str(sangam.directory / "local.env")]
        told = subprocess.run(demo, capture_output=True, text=True, timeout=180, check=False)
        for platform in ("bfc", "vyomo"):
            request = urllib.request.Request(
                sangam.url(f"simulator-{platform}") + "/control/live",
                data=b'{"every_s": 0}',
                headers={"Content-Type": "application/json"},
                method="POST",
            )
            urllib.request.urlopen(request, timeout=10).close()
        assert told.returncode == 0, told.stdout + told.stderr
        return told

    return tell


@pytest.fixture(scope="session")
def first_story(tell_story: Callable[[], Told]) -> Told:
    """The demo on a product that has not seen it: whoever needs what it leaves asks for this first telling."""
    return tell_story()
