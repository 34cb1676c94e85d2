"""Anchors and archives: what proves the log to somebody who does not trust the database."""

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command import Writer, sangam
from events import anchors, pg
from events.cli.archive import BadArchive, check

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration

# Somebody who may do everything changes an event and computes every hash after it anew.
REWRITE = """
    DO $$ DECLARE head bytea := store.genesis(); row record; BEGIN
        UPDATE store.events SET data = replace(convert_from(data, 'UTF8'), 'bfc', 'vyo')::bytea
         WHERE id = (SELECT id FROM store.log WHERE position = 20);
        FOR row IN SELECT l.position, e.* FROM store.log l JOIN store.events e ON e.id = l.id ORDER BY l.position LOOP
            head := sha256(head || store.event_bytes(row.position, row.id, row.stream, row.version, row.event_id,
                row.type, row.schema_version, row.subject, row.data, row.metadata, row.recorded_at));
            UPDATE store.log SET chain_hash = head WHERE position = row.position;
        END LOOP;
    END $$
"""


@pytest.fixture
async def writer(cell: "Cell") -> AsyncIterator[Writer]:
    """A log of 40 events."""
    async with Writer(cell) as writer:
        for n in range(40):
            await writer.append(f"ledger-{n % 4}")
        await writer.sequence()
        yield writer


async def _anchor(cell: "Cell", path: Path) -> None:
    """What the leading relay does, for a moment."""
    session = pg.Session(cell.store_url("relay"), application_name="anchors")
    task = asyncio.create_task(anchors.anchor_forever(session, path, every_s=0.02))
    written = len(anchors.read(path)) if path.exists() else 0
    async with asyncio.timeout(10):
        while not path.exists() or len(anchors.read(path)) == written:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await session.close()


async def test_a_rewritten_log_chains_and_only_its_anchors_tell(writer: Writer, tmp_path: Path) -> None:
    file, verify = tmp_path / "anchors", ("events", "verify", "--json", "--state", tmp_path / "state")
    await _anchor(writer.cell, file)
    for _ in range(5):
        await writer.append()
    await writer.sequence()
    await _anchor(writer.cell, file)
    assert [anchor.position for anchor in anchors.read(file)] == [40, 45]
    assert (await sangam(writer.cell, *verify, "--anchors", file)).code == 0
    await writer.admin.execute(REWRITE)
    assert (await sangam(writer.cell, *verify)).code == 0, "an anchorless verify cannot know"
    outcome = await sangam(writer.cell, *verify, "--anchors", file)
    assert outcome.code == 1
    assert outcome.json["findings"][0]["problem"] == "history replaced"
    assert outcome.json["findings"][0]["position"] == 40


async def test_anchors_of_another_epoch_say_nothing_of_this_one(writer: Writer, tmp_path: Path) -> None:
    file = tmp_path / "anchors"
    await _anchor(writer.cell, file)
    await writer.admin.execute("UPDATE store.store SET epoch = gen_random_uuid()")
    await writer.admin.execute(REWRITE)
    assert (await sangam(writer.cell, "events", "verify", "--state", tmp_path / "s", "--anchors", file)).code == 0


async def test_an_anchor_beyond_the_end_shows_that_the_end_is_gone(writer: Writer, tmp_path: Path) -> None:
    file = tmp_path / "anchors"
    await _anchor(writer.cell, file)
    await writer.admin.execute(
        "DELETE FROM store.event_ids i USING store.events e, store.log l"
        " WHERE i.event_id = e.event_id AND e.id = l.id AND l.position > 30"
    )
    await writer.admin.execute("DELETE FROM store.events e USING store.log l WHERE e.id = l.id AND l.position > 30")
    await writer.admin.execute("DELETE FROM store.log WHERE position > 30")
    outcome = await sangam(writer.cell, "events", "verify", "--json", "--state", tmp_path / "s", "--anchors", file)
    assert (outcome.code, outcome.json["findings"][0]["problem"]) == (1, "end missing")


async def test_a_line_cut_off_by_a_crash_is_mended(writer: Writer, tmp_path: Path) -> None:
    file = tmp_path / "anchors"
    await _anchor(writer.cell, file)
    with file.open("ab") as half:
        half.write(b'{"epoch":"x","posi')
    assert len(anchors.read(file)) == 1
    await writer.append()
    await writer.sequence()
    await _anchor(writer.cell, file)
    assert [anchor.position for anchor in anchors.read(file)] == [40, 41]


async def test_an_archive_proves_itself_without_the_database(writer: Writer, tmp_path: Path) -> None:
    parts = []
    for first, last in ((1, 25), (26, 40)):
        outcome = await sangam(writer.cell, "events", "archive", tmp_path, "--from", first, "--to", last, "--json")
        assert outcome.code == 0, outcome.err
        parts.append(outcome.json)
    assert parts[0]["hash_after"] == parts[1]["hash_before"]
    for part in parts:
        proven = await sangam(None, "events", "check-archive", part["file"], "--json")
        assert (proven.code, proven.json["hash_after"]) == (0, part["hash_after"])
    assert (await sangam(writer.cell, "events", "archive", tmp_path, "--to", 41)).code == 2
    assert (await sangam(writer.cell, "events", "archive", tmp_path / "nowhere")).code == 2


async def test_a_damaged_archive_is_found_out(writer: Writer, tmp_path: Path) -> None:
    outcome = await sangam(writer.cell, "events", "archive", tmp_path, "--json")
    file = Path(outcome.json["file"])
    manifest = file.with_name(file.name + ".manifest.json")
    good, lines = file.read_bytes(), gzip.decompress(file.read_bytes()).splitlines()

    def rewritten(new_lines: list[bytes], digest: bool = True) -> None:
        file.write_bytes(gzip.compress(b"\n".join(new_lines) + b"\n"))
        if digest:
            told = json.loads(manifest.read_text()) | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            manifest.write_text(json.dumps(told))

    check(file)
    rewritten(lines[:-1], digest=False)
    with pytest.raises(BadArchive, match="SHA-256"):
        check(file)
    for damaged, why in (
        (lines[:-1], "ends at position 39"),
        (lines[:10] + lines[11:], "position 11 is missing"),
        ([line.replace(b'"ledger-1"', b'"ledger-2"') for line in lines], "ends at position 40"),
        ([b"{}", *lines[1:]], "not an event"),
    ):
        rewritten(damaged)
        with pytest.raises(BadArchive, match=why):
            check(file)
    file.write_bytes(good)
    assert (await sangam(None, "events", "check-archive", file)).code == 1, "the manifest was changed as well"


async def test_a_log_that_does_not_chain_is_not_archived(writer: Writer, tmp_path: Path) -> None:
    await writer.admin.execute(
        "UPDATE store.events SET data = '' WHERE id = (SELECT id FROM store.log WHERE position = 9)"
    )
    outcome = await sangam(writer.cell, "events", "archive", tmp_path)
    assert outcome.code == 1
    assert "position 9 does not chain" in outcome.err
    assert list(tmp_path.iterdir()) == []
