"""The restore drill, run: a destroyed store comes back with the hash chain it had."""

from pathlib import Path

import pytest
from restore_drill import drill

pytestmark = pytest.mark.chaos


async def test_a_destroyed_store_is_restored_to_the_moment_before_the_mistake(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("restore")
    for folder in (directory, *directory.parents):
        if folder.stat().st_uid == 0 and folder != Path("/") and not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)  # PostgreSQL's own user passes through
    told: list[str] = []
    outcome = await drill(directory, told.append, events=400)
    assert outcome.events_at_the_point == 1_200
    assert outcome.events_lost == 200
    assert any("verified 1,200 events" in line for line in told)
