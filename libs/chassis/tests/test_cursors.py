"""Cursors: only ours, only for this list, only for this caller."""

from typing import NamedTuple
from uuid import uuid4

import pytest
from chassis.cursors import CursorCodec
from chassis.problems import Problem
from hypothesis import given
from hypothesis import strategies as st


class Place(NamedTuple):
    position: int
    id: str


CODEC = CursorCodec("b1Vw0q9ZtYx4LrS7")
ALICE, BOB = uuid4(), uuid4()


def refused(cursor: str, codec: CursorCodec = CODEC, *, purpose: str = "inbox", caller: object = ALICE) -> bool:
    with pytest.raises(Problem) as caught:
        codec.decode(cursor, Place, purpose=purpose, caller=caller)
    return (caught.value.status, caught.value.code) == (400, "invalid_cursor")


@given(st.integers(), st.text())
def test_round_trip(position: int, text: str) -> None:
    cursor = CODEC.encode(Place(position, text), purpose="inbox", caller=ALICE)
    assert CODEC.decode(cursor, Place, purpose="inbox", caller=ALICE) == Place(position, text)


def test_the_smallest_value() -> None:
    assert CODEC.decode(CODEC.encode(7), int) == 7


def test_bound_to_list_caller_and_secret() -> None:
    cursor = CODEC.encode(Place(7, "x"), purpose="inbox", caller=ALICE)
    assert refused(cursor, caller=BOB)
    assert refused(cursor, purpose="outbox")
    assert refused(cursor, CursorCodec("another-secret-of-16"))
    assert refused(CODEC.encode(Place(7, "x"), purpose="in", caller=f"box{ALICE}"))


@given(st.data())
def test_any_changed_character_is_noticed(data: st.DataObject) -> None:
    cursor = CODEC.encode(Place(7, "xyz"), purpose="inbox", caller=ALICE)
    index = data.draw(st.integers(0, len(cursor) - 2))  # the last one carries padding bits
    other = data.draw(st.sampled_from("ABab01-_").filter(lambda character: character != cursor[index]))
    assert refused(cursor[:index] + other + cursor[index + 1 :])


@pytest.mark.parametrize(
    "cursor", ["", "x", "1 OR 1=1", "../../etc", "A" * 24, "A" * 25, "A" * 5000, "é" * 30, "A" * 40 + "\n"]
)
def test_nonsense(cursor: str) -> None:
    assert refused(cursor)


def test_a_cursor_of_an_older_shape_is_no_error_of_ours() -> None:
    assert refused(CODEC.encode({"old": True}, purpose="inbox", caller=ALICE))
