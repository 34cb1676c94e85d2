"""Webhook secrets at rest open only where they belong."""

import pytest
from sync_gateway.secret_box import SealBroken, SecretBox

KEY, OTHER = (bytes([n]) * 32 for n in (1, 2))
SECRET = "whsec_" + "A" * 32


def test_what_is_sealed_opens_in_its_place_only() -> None:
    sealed = SecretBox(KEY).seal(SECRET, "webhook 1")
    assert SECRET not in sealed
    assert sealed != SecretBox(KEY).seal(SECRET, "webhook 1"), "no two seals are alike"
    assert SecretBox(KEY).open(sealed, "webhook 1") == SECRET
    for box, text, place in (
        (SecretBox(KEY), sealed, "webhook 2"),
        (SecretBox(OTHER), sealed, "webhook 1"),
        (SecretBox(KEY), sealed[:-5] + "AAA=", "webhook 1"),
        (SecretBox(KEY), sealed.replace("w1.", "w2."), "webhook 1"),
        (SecretBox(KEY), "w1.!!!", "webhook 1"),
        (SecretBox(KEY), "", "webhook 1"),
    ):
        with pytest.raises(SealBroken):
            box.open(text, place)
