import base64

import pytest
from identity.sealing import IdentityKey, SealBroken, keyed_uuid

KEY = IdentityKey(bytes(range(32)))
PLACE = ("user-1", "sealed_profile")


def test_opens_what_it_sealed_and_never_seals_alike() -> None:
    first, second = KEY.seal(b"asha", *PLACE), KEY.seal(b"asha", *PLACE)
    assert first != second
    assert KEY.open(first, *PLACE) == KEY.open(second, *PLACE) == b"asha"
    assert b"asha" not in base64.b64decode(first.split(".")[1])


@pytest.mark.parametrize(
    ("stream", "field"),
    [
        pytest.param("user-2", "sealed_profile", id="moved to another user"),
        pytest.param("user-1", "sealed_password_hash", id="moved to another field"),
    ],
)
def test_a_seal_is_bound_to_its_place(stream: str, field: str) -> None:
    with pytest.raises(SealBroken):
        KEY.open(KEY.seal(b"asha", *PLACE), stream, field)


def test_another_key_opens_nothing() -> None:
    with pytest.raises(SealBroken):
        IdentityKey(bytes(32)).open(KEY.seal(b"asha", *PLACE), *PLACE)


def test_every_changed_byte_breaks_the_seal() -> None:
    scheme, text = KEY.seal(b"asha", *PLACE).split(".")
    raw = base64.b64decode(text)
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1
        with pytest.raises(SealBroken):
            KEY.open(f"{scheme}.{base64.b64encode(changed).decode()}", *PLACE)


@pytest.mark.parametrize("text", ["", "v1.", "v1.%%%", "v1.AAAA", "v2.AAAA", "plain"])
def test_what_is_no_seal_is_refused(text: str) -> None:
    with pytest.raises(SealBroken):
        KEY.open(text, *PLACE)


def test_keyed_hashes_differ_by_key_purpose_and_text() -> None:
    other = IdentityKey(bytes(32))
    assert keyed_uuid(KEY.mac_key("email"), "a@b.in") == keyed_uuid(KEY.mac_key("email"), "a@b.in")
    ids = {
        keyed_uuid(KEY.mac_key("email"), "a@b.in"),
        keyed_uuid(KEY.mac_key("email"), "b@b.in"),
        keyed_uuid(KEY.mac_key("refresh-token"), "a@b.in"),
        keyed_uuid(other.mac_key("email"), "a@b.in"),
    }
    assert len(ids) == 4


def test_repr_shows_no_key() -> None:
    assert repr(KEY) == "IdentityKey(***)"
