"""What goes over the wire is what `websockets` makes of the same text."""

import pytest
from chassis.frames import InvalidFrame, Subscribe, decode, framed
from websockets.frames import Frame, Opcode


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_a_text_frame_of_any_length(length: int) -> None:
    text = b"x" * length
    assert framed(text) == Frame(Opcode.TEXT, text).serialize(mask=False)


def test_what_a_client_says() -> None:
    assert decode('{"type":"subscribe"}') == Subscribe([])
    for nonsense in ("", "{", "[]", '{"type":"shout"}', '{"type":"subscribe","topics":"x"}', "[" * 100_000):
        with pytest.raises(InvalidFrame):
            decode(nonsense)
