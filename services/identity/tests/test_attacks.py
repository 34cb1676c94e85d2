"""Every attack on identity that the project knows of, and the tests that make it, in one list."""

import ast
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from events.store import EventStore
from identity.keyring import ROTATE_AFTER, TRUSTED_AFTER_USE, KeyRing
from identity.passwords import PasswordHashing
from identity.sealing import IdentityKey
from identity.throttle import Throttle

if TYPE_CHECKING:
    from identity_harness import Client, Person

ROOT = Path(__file__).parents[3]
SignUp = Callable[["Client"], Awaitable["Person"]]

_TOKENS = "libs/chassis/tests/test_tokens.py"
_REVOCATIONS = "libs/chassis/tests/test_revocations.py"
_EVERYWHERE = "tests/integration/test_sign_out_everywhere.py"
_SEALING = "libs/events/tests/test_sealing.py"
_SESSIONS = "services/identity/tests/test_sessions_api.py"
_RACES = "services/identity/tests/test_races.py"
_OPENID = "services/identity/tests/test_openid.py"
_ACCOUNT = "services/identity/tests/test_account.py"
_LINKING = "services/identity/tests/test_linking.py"
_SIGN_IN = "services/identity/tests/test_sign_in.py"
_HERE = "services/identity/tests/test_attacks.py"

ATTACKS: dict[str, list[tuple[str, str]]] = {
    "JWT: alg none": [(_TOKENS, "test_alg_none")],
    "JWT: HS256 with the public key": [(_TOKENS, "test_hs256_signed_with_the_public_key")],
    "JWT: kid traversal": [(_TOKENS, "test_kid_that_is_not_one_of_our_keys")],
    "JWT: jku, x5u, jwk, crit": [(_TOKENS, "test_further_header_parameters")],
    "JWT: wrong typ": [
        (_TOKENS, "test_wrong_typ"),
        (_REVOCATIONS, "test_a_step_up_is_of_this_session_typed_and_short"),
    ],
    "JWT: wrong or several aud": [(_TOKENS, "test_wrong_or_several_audiences")],
    "JWT: missing, string or huge exp": [
        (_TOKENS, "test_claims_missing_or_of_another_type"),
        (_TOKENS, "test_times_that_are_not_plain_integers"),
        (_TOKENS, "test_life_longer_than_an_hour"),
    ],
    "JWT: 5 MB token": [(_TOKENS, "test_five_megabytes_are_refused_unread")],
    "JWT: retired key": [
        (_TOKENS, "test_retired_key_ends_its_tokens_cached_or_not"),
        (_HERE, "test_keys_rotate_with_overlap"),
    ],
    "JWT: flood of unknown kids": [(_TOKENS, "test_flood_of_unknown_kids_does_not_reach_the_database")],
    "Sessions: refresh token used 20 times in parallel": [
        (_SIGN_IN, "test_20_parallel_refreshes_give_one_successor"),
        (_RACES, "test_20_parallel_uses_over_a_restart"),
    ],
    "Sessions: refresh racing revoke": [
        (_RACES, "test_refresh_racing_revoke"),
        (_SESSIONS, "test_refresh_racing_revoke_never_leaves_a_live_family"),
    ],
    "Sessions: reuse after a restart": [(_RACES, "test_reuse_after_a_restart_is_still_reuse")],
    "Sessions: fixation": [(_SESSIONS, "test_a_login_never_continues_a_session_that_was_there_before")],
    "Sessions: a login that outlives a password change": [
        (_ACCOUNT, "test_a_login_with_the_old_password_never_survives_its_change")
    ],
    "Sessions: revoked token on an open WebSocket": [(_EVERYWHERE, "test_in_once_out_everywhere")],
    "Sessions: revocation while a consumer is down": [
        (_EVERYWHERE, "test_a_service_that_was_down_refuses_from_its_first_answer"),
        (_EVERYWHERE, "test_no_money_moves_while_nobody_can_say_who_is_signed_out"),
        (_REVOCATIONS, "test_a_stale_feed_fails_closed_for_money_only"),
    ],
    "OAuth: redirect suffix or case": [(_OPENID, "test_authorization_refusals")],
    "OAuth: PKCE missing or plain": [(_OPENID, "test_authorization_refusals")],
    "OAuth: code reused": [(_OPENID, "test_a_code_is_for_one_client_one_address_one_verifier_once")],
    "OAuth: login forged by another site": [(_OPENID, "test_the_form_cannot_be_posted_by_another_site")],
    "OAuth: scope raised in exchange": [(_SESSIONS, "test_exchange_narrows_and_records")],
    "OAuth: subject token omitted": [(_SESSIONS, "test_exchange_refusals")],
    "OAuth: exchange after revoke": [(_SESSIONS, "test_exchange_refusals")],
    "OAuth: a narrowed token used for more": [(_SESSIONS, "test_a_narrowed_token_is_good_for_that_much_only")],
    "Accounts: enumeration by timing": [
        (_HERE, "test_an_unknown_address_costs_the_same_work"),
        (_SIGN_IN, "test_wrong_password_unknown_user_and_no_address_look_alike"),
    ],
    "Accounts: code brute force over parallel sessions": [
        (_ACCOUNT, "test_otp_codes_cannot_be_guessed_over_parallel_sessions"),
        (_ACCOUNT, "test_codes_cannot_be_guessed_over_parallel_requests"),
    ],
    "Accounts: TOTP step replay": [(_ACCOUNT, "test_a_code_is_taken_once_in_all_sessions_together")],
    "Accounts: lockout dodged by X-Forwarded-For": [(_EVERYWHERE, "test_lockout_is_not_dodged_by_forged_addresses")],
    "Accounts: link hijack": [
        (_LINKING, "test_a_customer_of_another_user"),
        (_LINKING, "test_of_parallel_claims_to_one_customer_one_user_wins"),
    ],
    "Accounts: step-up for another amount": [(_ACCOUNT, "test_step_up_is_bound_to_amount_and_payee")],
    "Accounts: an erasure or a password change that a crash cuts short": [
        (_ACCOUNT, "test_an_erasure_that_was_cut_short_is_finished_from_the_log"),
        (_ACCOUNT, "test_a_password_changes_together_with_the_end_of_the_sessions"),
    ],
    "Keys: another service's own key": [(_SEALING, "test_a_services_own_key_is_its_own")],
    "API: another customer's session": [(_SESSIONS, "test_sessions_are_listed_with_their_devices_and_end_one_by_one")],
    "API: mass assignment": [(_SIGN_IN, "test_bad_registration")],
    "API: an operator's token without route, scope or customer": [
        (_REVOCATIONS, "test_an_operators_token_needs_the_route_the_scope_and_a_customer"),
        (_EVERYWHERE, "test_an_operator_acts_for_a_customer_on_record"),
    ],
}


def names_in(path: str) -> set[str]:
    nodes = ast.parse((ROOT / path).read_text()).body
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_of_the_list_has_its_tests(attack: str) -> None:
    assert ATTACKS[attack]
    for path, name in ATTACKS[attack]:
        assert name in names_in(path), f"{path} has no {name}"


@pytest.mark.integration
async def test_an_unknown_address_costs_the_same_work(
    client: "Client", sign_up: SignUp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same hash, the same counting, the same reads, in the same order: nothing for a clock to tell."""
    person = await sign_up(client)
    work: list[str] = []

    def noted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        async def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
            work.append(f"{owner.__name__}.{name}")
            return await original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, noting)

    noted(PasswordHashing, "verify")
    noted(EventStore, "read_stream")
    noted(Throttle, "take_all")
    done = []
    for email in (person.email, "nobody@example.in"):
        work.clear()
        body = {"email": email, "password": "a wrong passphrase", "platform": "bfc"}
        assert (await client.post("/api/auth/login", json=body)).status_code == 401
        done.append(list(work))
    assert done[0] == done[1]
    assert done[0].count("PasswordHashing.verify") == 1


@pytest.mark.integration
async def test_keys_rotate_with_overlap(store: EventStore) -> None:
    """The next key is published before it signs, the last one is trusted until its tokens are gone, then retired."""
    now = [datetime.now(UTC)]
    ring = KeyRing(store, IdentityKey(bytes(range(32))), clock=lambda: now[0])
    other = KeyRing(store, IdentityKey(bytes(range(32))), clock=lambda: now[0])
    await ring.load()
    await other.load()
    first = ring.current().kid
    now[0] += ROTATE_AFTER - timedelta(seconds=1)
    await ring.tend()
    assert len(ring.public_jwks) == 1
    now[0] += timedelta(seconds=2)
    for each in (ring, other):  # both replicas find that it is time
        await each.tend()
    assert [jwk["kid"] for jwk in ring.public_jwks] == [jwk["kid"] for jwk in other.public_jwks]
    assert len(ring.public_jwks) == 2
    assert ring.current().kid == first, "known, not used yet"
    now[0] += timedelta(seconds=61)
    second = ring.current().kid
    assert second != first
    await ring.tend()
    assert len(ring.public_jwks) == 2, "the last one's tokens are still good"
    now[0] += TRUSTED_AFTER_USE
    await ring.tend()
    await other.tend()
    assert [jwk["kid"] for jwk in other.public_jwks] == [second]
    assert other.current().kid == second
    restarted = KeyRing(store, IdentityKey(bytes(range(32))), clock=lambda: now[0])
    await restarted.load()
    assert restarted.current().kid == second
