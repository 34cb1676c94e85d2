"""Codes that come by mail: for one person, one purpose, once, and not for long."""

from datetime import UTC, datetime, timedelta
from functools import reduce
from uuid import uuid4

import pytest
from events.contracts.identity import CodePurpose
from identity import codes
from identity.users import User, evolve

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)
KEY, USER = b"k" * 32, uuid4()


def with_code(typed: str) -> User:
    issued = codes.issue(
        USER,
        uuid4(),
        "password_reset",
        hashed=codes.code_hash(KEY, USER, typed),
        code_sealed="",
        to_sealed="",
        now=NOW,
    )
    return reduce(evolve, issued, User())


def test_a_code_is_good_once_however_it_is_typed() -> None:
    user = with_code("ABCDEFGH2345")
    used = codes.use(user, ["password_reset"], codes.code_hash(KEY, USER, "abcd-efgh 2345"), NOW)
    with pytest.raises(codes.InvalidCode):
        codes.use(reduce(evolve, used, user), ["password_reset"], codes.code_hash(KEY, USER, "ABCDEFGH2345"), NOW)


@pytest.mark.parametrize(
    ("purpose", "typed", "after"),
    [
        ("email_verification", "ABCDEFGH2345", timedelta()),
        ("password_reset", "ABCDEFGH2346", timedelta()),
        ("password_reset", "ABCDEFGH2345", codes.LIFETIMES["password_reset"]),
    ],
    ids=["another purpose", "another code", "too late"],
)
def test_a_code_is_not_good_for(purpose: CodePurpose, typed: str, after: timedelta) -> None:
    with pytest.raises(codes.InvalidCode):
        codes.use(with_code("ABCDEFGH2345"), [purpose], codes.code_hash(KEY, USER, typed), NOW + after)


def test_a_code_is_its_users_only() -> None:
    assert codes.code_hash(KEY, USER, "ABCDEFGH2345") != codes.code_hash(KEY, uuid4(), "ABCDEFGH2345")
