"""The session's decisions, and refresh rotation against a model of what holders of tokens may see."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import reduce
from uuid import UUID

import msgspec
import pytest
from events.contracts.identity import RefreshReuseDetected, SessionRefreshed, SessionRevoked, SessionStarted
from events.contracts.registry import Event
from hypothesis import given as examples
from hypothesis import strategies as st
from identity import sessions
from identity.sessions import Session, SessionEnded

NOW = datetime(2026, 2, 12, 9, 0, tzinfo=UTC)
SESSION, USER = UUID(int=1), UUID(int=2)
STARTED = SessionStarted(session_id=SESSION, user_id=USER, platform="bfc", acr=1, expires_at=NOW + sessions.LIFETIME)
REVOKED = SessionRevoked(session_id=SESSION, user_id=USER, reason="logout")
REUSE = [
    RefreshReuseDetected(session_id=SESSION, user_id=USER),
    SessionRevoked(session_id=SESSION, user_id=USER, reason=sessions.REUSE),
]


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def refreshed(generation: int, seconds: float) -> SessionRefreshed:
    return SessionRefreshed(session_id=SESSION, generation=generation, refreshed_at=at(seconds))


def timeless(events: Iterable[Event]) -> list[Event]:
    """Without the time of a revocation, which is that of the decision."""
    return [
        msgspec.structs.replace(event, revoked_at=None) if isinstance(event, SessionRevoked) else event
        for event in events
    ]


def given(*events: Event) -> Session:
    return reduce(sessions.evolve, events, Session())


def test_start() -> None:
    assert sessions.start(SESSION, USER, "bfc", acr=1, now=NOW) == [STARTED]


@pytest.mark.parametrize(
    ("history", "generation", "seconds", "then"),
    [
        pytest.param([STARTED], 0, 60, [refreshed(1, 60)], id="first token"),
        pytest.param([STARTED, refreshed(1, 60)], 1, 90, [refreshed(2, 90)], id="successor"),
        pytest.param([STARTED, refreshed(1, 60)], 0, 60, [], id="same instant again"),
        pytest.param([STARTED, refreshed(1, 60)], 0, 59, [], id="again, by a replica whose clock is behind"),
        pytest.param([STARTED, refreshed(1, 60)], 0, 70, [], id="again at the end of the grace"),
        pytest.param([STARTED, refreshed(1, 60)], 0, 70.001, REUSE, id="again after the grace"),
        pytest.param([STARTED, refreshed(1, 60), refreshed(2, 61)], 0, 61, REUSE, id="two generations old"),
        pytest.param([STARTED], 1, 60, SessionEnded, id="a generation never given out"),
        pytest.param([], 0, 60, SessionEnded, id="no such session"),
        pytest.param([STARTED, REVOKED], 0, 60, SessionEnded, id="revoked"),
        pytest.param([STARTED, refreshed(1, 60), REVOKED], 0, 61, SessionEnded, id="revoked, in the grace"),
        pytest.param([STARTED, refreshed(1, 60), *REUSE], 1, 61, SessionEnded, id="the thief's successor"),
        pytest.param(
            [STARTED],
            0,
            sessions.LIFETIME.total_seconds() - 0.001,
            [refreshed(1, sessions.LIFETIME.total_seconds() - 0.001)],
            id="last moment",
        ),
        pytest.param([STARTED], 0, sessions.LIFETIME.total_seconds(), SessionEnded, id="expired"),
    ],
)
def test_refresh(history: list[Event], generation: int, seconds: float, then: list[Event] | type[Exception]) -> None:
    if isinstance(then, list):
        assert timeless(sessions.refresh(given(*history), SESSION, generation, at(seconds))) == then
    else:
        with pytest.raises(then):
            sessions.refresh(given(*history), SESSION, generation, at(seconds))


@examples(uses=st.lists(st.tuples(st.integers(0, 3), st.floats(0, 15, allow_nan=False)), min_size=1, max_size=40))
def test_rotation_model(uses: list[tuple[int, float]]) -> None:
    """Whoever uses whichever token when: at most one live generation, and a revoked family stays dead.

    `uses` = how many generations behind the newest the used token is, and the seconds since the last use.
    """
    session, seconds, newest, rotated_s, dead = given(STARTED), 0.0, 0, float("-inf"), False
    for behind, pause_s in uses:
        seconds += pause_s
        used = max(0, newest - behind)
        try:
            events = sessions.refresh(session, SESSION, used, at(seconds))
        except SessionEnded:
            assert dead
            continue
        assert not dead
        if used == newest:
            assert events == [refreshed(newest + 1, seconds)]
            newest, rotated_s = newest + 1, seconds
        elif used == newest - 1 and at(seconds) - at(rotated_s) <= sessions.REFRESH_GRACE:
            assert events == []
        else:
            assert timeless(events) == REUSE
            dead = True
        session = reduce(sessions.evolve, events, session)
        assert session.generation == newest
        assert session.revoked == dead
