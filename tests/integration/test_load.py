"""`make load` on a small scale: what many customers live through is on their screens, to the paisa."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from simulators import load

if TYPE_CHECKING:
    from stack import Stack

pytestmark = pytest.mark.integration


async def test_a_load_ends_with_the_right_balances(sangam: "Stack", capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--customers", "3", "--rate", "150", "--seed", "11", "--env", str(sangam.directory / "local.env")]
    assert await asyncio.to_thread(load.main, arguments) == 0
    said = capsys.readouterr().out
    assert "balances right for 3 of 3 linked customers" in said, said
    # Told again, nothing is new: the platforms and Sangam know it.
    assert await asyncio.to_thread(load.main, arguments) == 0
    assert " 0 of them new" in capsys.readouterr().out
