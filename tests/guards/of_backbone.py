"""Guards of the backbone."""

from guard import Guard

_PASSWORDS = "libs/events/src/events/passwords.py"
_TESTS = "libs/events/tests/test_passwords.py"

GUARDS = (
    Guard(
        "a password that is replaced fails what needs a new connection",
        _PASSWORDS,
        """password in listed.split(",")]""",
        """password in listed.split(",")[:1]]""",
        (f"{_TESTS}::test_passwords_are_replaced_and_no_append_fails_and_no_consumer_stops",),
    ),
    Guard(
        "every connection is refused first, from the replacement until the restart",
        _PASSWORDS,
        "            _accepted[url] = candidate\n",
        "",
        (f"{_TESTS}::test_what_was_taken_last_is_tried_first_and_then_the_others",),
    ),
    Guard(
        "a malformed URL tells its password",
        _PASSWORDS,
        """        or "@" in login + parts.path\n""",
        "",
        (f"{_TESTS}::test_a_malformed_url_is_refused_and_not_told",),
    ),
    Guard(
        "a leader that waits for its publishers for ever: an error instead of the cancellation",
        "libs/events/src/events/outage.py",
        "    with contextlib.suppress(*BROKER_ERRORS):\n        async with asyncio.timeout(_CLOSE_WITHIN_S):",
        "    if True:\n        async with asyncio.timeout(_CLOSE_WITHIN_S):",
        ("libs/events/tests/test_publisher.py",),
    ),
    Guard(
        "a leader that waits for its publishers for ever: a close that is not answered",
        "libs/events/src/events/outage.py",
        "asyncio.timeout(_CLOSE_WITHIN_S)",
        "asyncio.timeout(None)",
        ("libs/events/tests/test_publisher.py",),
    ),
)
