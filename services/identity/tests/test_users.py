"""The user's decisions: given events, when a command, then events."""

from datetime import UTC, datetime, timedelta
from functools import reduce
from uuid import UUID

import pytest
from events.contracts.identity import (
    CredentialChanged,
    EmailClaimTaken,
    LinkConfirmed,
    LinkRequested,
    Platform,
    PlatformLinkTaken,
    UserRegistered,
)
from events.contracts.registry import Event
from events.envelope import platform_stream
from identity import users
from identity.users import Claim, LinkExpired, LinkNotFound, User

NOW = datetime(2026, 2, 12, 9, 0, tzinfo=UTC)
USER = UUID(int=1)


def link_id(number: int) -> UUID:
    return UUID(int=100 + number)


def requested(number: int, customer: str = "BFC-1001", platform: Platform = "bfc") -> LinkRequested:
    return LinkRequested(
        link_id=link_id(number),
        platform=platform,
        platform_customer_id=customer,
        nonce=f"nonce-{number}",
        expires_at=NOW + timedelta(minutes=10),
    )


def confirmed(number: int, customer: str = "BFC-1001", platform: Platform = "bfc") -> LinkConfirmed:
    return LinkConfirmed(
        link_id=link_id(number),
        platform=platform,
        platform_customer_id=customer,
        platform_stream=platform_stream(platform, customer),
    )


def given(*events: Event) -> User:
    return reduce(users.evolve, events, User())


def test_register_makes_the_user_and_the_credential() -> None:
    events = users.register(USER, "profile", "hash")
    assert list(events) == [
        UserRegistered(user_id=USER, sealed_profile="profile"),
        CredentialChanged(sealed_password_hash="hash"),
    ]
    assert given(*events) == User(registered=True, sealed_profile="profile", sealed_password_hash="hash")


def test_request_link_expires_after_ten_minutes() -> None:
    assert users.request_link(link_id(1), "bfc", "BFC-1001", "nonce-1", NOW) == [requested(1)]


@pytest.mark.parametrize(
    ("history", "when", "then"),
    [
        pytest.param([requested(1)], (1, "bfc", NOW), [confirmed(1)], id="open request"),
        pytest.param([requested(1), confirmed(1)], (1, "bfc", NOW), [], id="same request again"),
        pytest.param(
            [requested(1), confirmed(1)],
            (1, "bfc", NOW + timedelta(days=1)),
            [],
            id="same request again, later",
        ),
        pytest.param(
            [requested(1), requested(2), confirmed(1)],
            (2, "bfc", NOW),
            [],
            id="same customer by another request",
        ),
        pytest.param(
            [requested(1), requested(2, "BFC-2"), confirmed(1)],
            (2, "bfc", NOW),
            [confirmed(2, "BFC-2")],
            id="second customer",
        ),
        pytest.param(
            [requested(1), requested(2, "BFC-1001", "vyomo"), confirmed(1)],
            (2, "vyomo", NOW),
            [confirmed(2, "BFC-1001", "vyomo")],
            id="same text on the other platform",
        ),
        pytest.param([], (1, "bfc", NOW), LinkNotFound, id="never requested"),
        pytest.param([requested(1)], (2, "bfc", NOW), LinkNotFound, id="another link id"),
        pytest.param([requested(1)], (1, "vyomo", NOW), LinkNotFound, id="on the other platform"),
        pytest.param(
            [requested(1), confirmed(1)],
            (1, "vyomo", NOW),
            LinkNotFound,
            id="confirmed, on the other platform",
        ),
        pytest.param(
            [requested(1)],
            (1, "bfc", NOW + timedelta(minutes=10) - timedelta(microseconds=1)),
            [confirmed(1)],
            id="last moment",
        ),
        pytest.param([requested(1)], (1, "bfc", NOW + timedelta(minutes=10)), LinkExpired, id="too late"),
        pytest.param(
            [requested(1)],
            (1, "vyomo", NOW + timedelta(days=1)),
            LinkNotFound,
            id="not found comes before expired",
        ),
    ],
)
def test_confirm_link(
    history: list[Event], when: tuple[int, Platform, datetime], then: list[Event] | type[Exception]
) -> None:
    number, platform, now = when
    if isinstance(then, list):
        assert list(users.confirm_link(given(*history), link_id(number), platform, now)) == then
    else:
        with pytest.raises(then):
            users.confirm_link(given(*history), link_id(number), platform, now)


def test_confirming_closes_the_request() -> None:
    user = given(requested(1), requested(2, "BFC-2"), confirmed(1))
    assert list(user.requests) == [link_id(2)]
    assert [(link.link_id, link.customer_id) for link in user.links] == [(link_id(1), "BFC-1001")]


def test_the_oldest_of_too_many_open_requests_is_forgotten() -> None:
    user = given(*(requested(number) for number in range(users.OPEN_LINKS_MAX + 1)))
    assert len(user.requests) == users.OPEN_LINKS_MAX
    assert link_id(0) not in user.requests


def test_evolve_leaves_the_earlier_state_alone() -> None:
    before = given(requested(1))
    users.evolve(before, confirmed(1))
    assert list(before.requests) == [link_id(1)]


def test_a_claim_belongs_to_who_took_it() -> None:
    taken = PlatformLinkTaken(user_id=USER, platform="bfc", platform_customer_id="BFC-1001")
    assert users.evolve_claim(Claim(), taken).holder == USER
    assert users.evolve_claim(Claim(), EmailClaimTaken(user_id=USER)).holder == USER


def test_a_platform_customer_has_one_claim_stream_per_platform() -> None:
    assert users.platform_link_id("bfc", "X-1") == users.platform_link_id("bfc", "X-1")
    assert users.platform_link_id("bfc", "X-1") != users.platform_link_id("vyomo", "X-1")
    UUID(users.platform_link_id("bfc", "X-1"))
