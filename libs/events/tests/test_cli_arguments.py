"""What people type to `sangam`, and what it says when that is wrong. Needs no server."""

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
import typer
from command import sangam
from events.cli import arguments, output
from events.cli.connection import Servers
from events.cli.verification import _RecentVersions
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 2, 12, 9, 0, tzinfo=UTC)


def _as_amqp_says(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_as_amqp_says(pattern[1:], words[n:]) for n in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _as_amqp_says(pattern[1:], words[1:])


@given(
    st.lists(st.sampled_from(["a", "b", "a_b", "*", "#"]), min_size=1, max_size=5),
    st.lists(st.sampled_from(["a", "b", "a_b"]), min_size=1, max_size=5),
)
def test_type_patterns_mean_what_amqp_means(pattern: list[str], words: list[str]) -> None:
    matches = re.match(arguments.type_regex(".".join(pattern)), ".".join(words) + ".") is not None
    assert matches == _as_amqp_says(pattern, words)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("1200", 1200),
        ("15m", NOW - timedelta(minutes=15)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("2026-02-12T09:00:00Z", NOW),
        ("2026-02-12T14:30:00+05:30", NOW),
        ("2026-02-12 09:00", NOW),
    ],
)
def test_since(text: str, meant: int | datetime) -> None:
    assert arguments.since(text, NOW) == meant


@pytest.mark.parametrize("text", ["", "yesterday", "-5", "15 m", "٣", "2026-13-01"])
def test_since_refuses_what_it_does_not_understand(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        arguments.since(text, NOW)


def test_stored_text_cannot_command_a_terminal() -> None:
    assert output.as_text(b"pay \x1b[2J \xc2\x9b2J \xe2\x80\xae \xff \xe2\x82\xb95") == (
        r"pay \x1b[2J \x9b2J \u202e \xff ₹5"
    )


def test_few_streams_are_remembered_and_the_most_recent_of_them() -> None:
    versions = _RecentVersions(10)
    for n in range(1_000):
        versions.put(f"s{n}", n)
        versions.put("busy", n)
    assert versions.get("busy") == 999
    assert versions.get("s999") == 999
    assert versions.get("s900") is None


@pytest.mark.parametrize(
    ("store", "wealth"),
    [
        ("postgresql://u:p@h:5/event_store", "/wealth"),
        ("postgresql://u:p@h:5/team7_event_store_3?sslmode=require", "/team7_wealth_3"),
    ],
)
def test_a_services_database_is_named_as_the_stores_is(store: str, wealth: str) -> None:
    session = Servers(store).database("wealth")
    assert session._url == store.replace(store.partition(":5")[2].partition("?")[0], wealth)


async def test_wrong_usage_is_code_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    empty = tmp_path / "empty.env"
    empty.write_text("AMQP_URL=x\n")
    nowhere = "postgresql://u:hunter2@127.0.0.1:1/event_store"
    wrong: list[tuple[list[str | Path], str]] = [
        (["lag"], "where is the event store"),
        (["lag", "--env", empty], "does not set"),
        (["lag", "--env", tmp_path / "none"], "No such file"),
        (["lag", "--store", "mysql://u:hunter2@h/event_store"], "must look like"),
        (["lag", "--store", "postgresql://u:hunter2@h:port/event_store"], "must look like"),
        (["lag", "--store", nowhere, "--service", "payments"], "no service"),
        (["events", "show", "--store", nowhere, "first"], "neither"),
        (["events", "tail", "--store", nowhere, "--since", "soon"], "neither"),
        (["events", "stats", "--store", nowhere, "--window", "long"], "length of time"),
        (["events", "verify", "--store", nowhere, "--resume", "--from", "3"], "--resume"),
        (["events", "verify", "--store", nowhere, "--to", "2", "--from", "3"], "before"),
        (["parked", "show", "--store", nowhere, "wealth"], "CONSUMER"),
        (["nonsense"], "nonsense"),
    ]
    for typed, complaint in wrong:
        outcome = await sangam(None, *typed)
        assert (outcome.code, outcome.out) == (2, "")
        assert complaint in " ".join(outcome.err.replace("│", " ").split())
        assert "hunter2" not in outcome.err


async def test_no_server_is_code_3() -> None:
    for command in (["events", "tail"], ["events", "show", "1"], ["events", "stats"], ["events", "verify"], ["lag"]):
        outcome = await sangam(None, *command, "--store", "postgresql://u:hunter2@127.0.0.1:1/event_store")
        assert (outcome.code, outcome.out) == (3, "")
        assert "127.0.0.1:1/event_store: cannot connect" in outcome.err
        assert "hunter2" not in outcome.err


@pytest.mark.parametrize(
    "command",
    [[], ["events"], ["events", "tail"], ["events", "show"], ["events", "stats"], ["events", "verify"], ["lag"],
     ["parked"], ["parked", "list"], ["parked", "show"]],
)  # fmt: skip
async def test_help_teaches(command: list[str]) -> None:
    outcome = await sangam(None, *command, "--help")
    assert outcome.code == 0
    if command not in ([], ["events"], ["parked"]):
        assert f"sangam {' '.join(command)}" in outcome.out.partition("Example")[2]


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("sangam")
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert "verify" not in shown.stderr
    assert "parked" in shown.stdout


def test_ids_and_positions() -> None:
    from events.cli.reading import which_event

    assert which_event("12") == 12
    assert which_event("0190b5d8-6a54-7c9e-8a2f-000000000001") == UUID("0190b5d8-6a54-7c9e-8a2f-000000000001")
    assert which_event("-1") is None
    assert which_event("9" * 30) is None
