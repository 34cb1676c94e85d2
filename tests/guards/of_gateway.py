"""What guards feeds, webhooks, WebSockets, and where customers' addresses may lead."""

from guard import Guard

_CHASSIS = "libs/chassis/src/chassis/"
_SYNC = "services/sync-gateway/src/sync_gateway/"
_EGRESS_TESTS = ("libs/chassis/tests/test_egress.py",)


def _chassis(name: str) -> tuple[str, ...]:
    return (f"libs/chassis/tests/test_{name}.py",)


def _sync(name: str, *tests: str) -> tuple[str, ...]:
    path = f"services/sync-gateway/tests/test_{name}.py"
    return tuple(f"{path}::{test}" for test in tests) if tests else (path,)


_ATTACKS = "attacks_integration"

GUARDS = (
    # Addresses that customers chose.
    Guard(
        "egress: NAT64",
        _CHASSIS + "egress.py",
        "return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))",
        "return True",
        _EGRESS_TESTS,
    ),
    Guard(
        "egress: IPv6-mapped",
        _CHASSIS + "egress.py",
        "return is_public(address.ipv4_mapped)",
        "return True",
        _EGRESS_TESTS,
    ),
    Guard("egress: 6to4", _CHASSIS + "egress.py", "if address.sixtofour is not None or", "if", _EGRESS_TESTS),
    Guard(
        "egress: ISATAP",
        _CHASSIS + "egress.py",
        "or (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP:",
        ":",
        _EGRESS_TESTS,
    ),
    Guard(
        "egress: special IPv4",
        _CHASSIS + "egress.py",
        " and not any(address in network for network in _SPECIAL)",
        "",
        _EGRESS_TESTS,
    ),
    Guard(
        "egress: multicast IPv4",
        _CHASSIS + "egress.py",
        "address.is_global and not address.is_multicast and not any",
        "address.is_global and not any",
        _EGRESS_TESTS,
    ),
    Guard(
        "egress: rebinding, at the socket",
        _CHASSIS + "egress.py",
        "if not self.allows(str(target[0]), int(target[1])):",
        "if False:",
        _EGRESS_TESTS,
    ),
    Guard(
        "egress: one address of several",
        _CHASSIS + "egress.py",
        "if not all(self.allows(",
        "if not any(self.allows(",
        _EGRESS_TESTS,
    ),
    Guard("egress: redirects", _CHASSIS + "egress.py", "allow_redirects=False", "allow_redirects=True", _EGRESS_TESTS),
    Guard(
        "egress: endless answer",
        _CHASSIS + "egress.py",
        "while left > 0 and (chunk := await response.content.read(left)):",
        "while chunk := await response.content.read(8_192):",
        _EGRESS_TESTS,
    ),
    Guard("egress: slow answer", _CHASSIS + "egress.py", "total=self.timeout_s, ", "", _EGRESS_TESTS),
    Guard(
        "egress: plain http",
        _CHASSIS + "egress.py",
        'if parts.scheme != "https" and not',
        "if False and not",
        _EGRESS_TESTS,
    ),
    Guard(
        "egress: credentials",
        _CHASSIS + "egress.py",
        "if parts.username is not None or parts.password is not None:",
        "if False:",
        _EGRESS_TESTS,
    ),
    Guard(
        "egress: another port of ours",
        _CHASSIS + "egress.py",
        "return (address, port) in self._allowed or",
        "return address in {a for a, _ in self._allowed} or",
        _EGRESS_TESTS,
    ),
    Guard(
        "webhook: a host of ours is registered",
        _SYNC + "webhook_api.py",
        "await egress.check_host(url)",
        "egress.check(url)",
        _sync(_ATTACKS),
    ),
    # Feeds.
    Guard(
        "feed: another platform's key",
        _SYNC + "signatures.py",
        "in self._webhooks[platform]:",
        "in [w for ws in self._webhooks.values() for w in ws]:",
        _sync("signatures"),
    ),
    Guard(
        "feed: malformed headers",
        _SYNC + "signatures.py",
        "except Exception as error:",
        "except ArithmeticError as error:",
        _sync("signatures"),
    ),
    Guard(
        "feed: too many batches",
        _SYNC + "intake.py",
        "if self._under_way[platform] >= self._batches_max:",
        "if False:",
        _sync("intake"),
    ),
    Guard(
        "feed: too many batches, over HTTP",
        _SYNC + "api.py",
        "except Busy:",
        "except ArithmeticError:",
        _sync("figures_integration", "test_too_many_batches_at_once_are_429_and_taken_later"),
    ),
    Guard(
        "feed: body size",
        _SYNC + "api.py",
        "request_max_body_size=BATCH_BYTES_MAX",
        "request_max_body_size=1 << 30",
        _sync("feed_integration"),
    ),
    # Webhooks.
    Guard(
        "webhook: another owner's",
        _SYNC + "webhooks.py",
        "or state.owner_id != owner_id or",
        "or",
        _sync("webhooks_integration", "test_only_the_owner_sees_or_touches_a_webhook"),
    ),
    Guard(
        "webhook: another customer's events",
        _SYNC + "deliveries.py",
        "if (owner_id is None or owner_id == event.subject) and",
        "if",
        _sync("webhooks_integration", "test_a_customer_s_events_arrive_signed_numbered_and_once"),
    ),
    Guard(
        "webhook: private events",
        _SYNC + "deliveries.py",
        "public = [event for event in events if event.public]",
        "public = [event for event in events if event.subject]",
        _sync("webhooks_integration"),
    ),
    Guard(
        "webhook: more than allowed",
        _SYNC + "webhook_api.py",
        ">= webhooks.PER_OWNER_MAX:",
        ">= 1 << 30:",
        _sync(_ATTACKS),
    ),
    Guard(
        "webhook: gone",
        _SYNC + "endpoint.py",
        "            return\n        if answer.gone and self._platform is None:",
        "            return\n        if False:",
        _sync("webhooks_integration", "test_gone_disables"),
    ),
    Guard(
        "webhook: a platform that says gone",
        _SYNC + "retries.py",
        "(answer.gone and gone_ends)",
        "answer.gone",
        _sync("retries"),
    ),
    Guard(
        "webhook: Retry-After", _SYNC + "retries.py", "max(pause_s, answer.retry_after_s)", "pause_s", _sync("retries")
    ),
    Guard(
        "webhook: Retry-After, other streams",
        _SYNC + "endpoint.py",
        "if now_s < self._not_before_s:",
        "if False:",
        _sync("webhooks_integration", "test_retry_after_is_about_the_receiver_not_about_one_message"),
    ),
    Guard(
        "webhook: Retry-After, probes",
        _SYNC + "endpoint.py",
        "max(dispatcher.limits.probe_s, answer.retry_after_s)",
        "dispatcher.limits.probe_s",
        _sync("webhooks_integration", "test_probes_wait_for_retry_after_too"),
    ),
    Guard(
        "webhook: concurrency",
        _SYNC + "endpoint.py",
        "while self._ready and self._attempting < self._concurrency_max and",
        "while self._ready and",
        _sync("webhooks_integration", "test_no_more_at_once_than_the_webhook_allows"),
    ),
    Guard(
        "webhook: rate",
        _SYNC + "endpoint.py",
        "if self._tokens < 1:",
        "if False:",
        _sync("webhooks_integration", "test_no_faster_than_the_webhook_allows"),
    ),
    Guard(
        "webhook: quarantine",
        _SYNC + "endpoint.py",
        "if self._quarantined or streak.failures < dispatcher.limits.quarantine_after:",
        "if True:",
        _sync("webhooks_integration", "test_a_failing_webhook_is_quarantined_probed_restored_and_misses_nothing"),
    ),
    Guard(
        "webhook: given up while it failed",
        _SYNC + "endpoint.py",
        'if since is not None:\n            await until_it_works("webhook requeue"',
        'if False:\n            await until_it_works("webhook requeue"',
        _sync("webhooks_integration", "test_a_failing_webhook_is_quarantined_probed_restored_and_misses_nothing"),
    ),
    Guard(
        "webhook: former secret after its time",
        _SYNC + "endpoint.py",
        "self._previous is not None and self._previous[1] > now:",
        "self._previous is not None:",
        _sync("webhooks_integration", "test_rotation_signs_with_both_secrets_for_a_while"),
    ),
    Guard(
        "webhook: probes of a platform",
        _SYNC + "endpoint.py",
        "PROBE_PAUSE_S_MAX if self._platform is None else PLATFORM_PROBE_PAUSE_S_MAX",
        "PROBE_PAUSE_S_MAX",
        _sync("ledger_integration"),
    ),
    Guard(
        "webhook: deleted while it is leased",
        _SYNC + "ledger.py",
        "ORDER BY e.webhook_id FOR KEY SHARE OF e",
        "ORDER BY e.webhook_id",
        _sync("ledger_integration"),
    ),
    Guard(
        "webhook: replayed again and again",
        _SYNC + "deliveries.py",
        " AND kind = 'replay'",
        " AND kind = 'never'",
        _sync("webhooks_integration", "test_one_replay_at_a_time"),
    ),
    # WebSockets.
    Guard(
        "socket: frame flood",
        _CHASSIS + "sockets.py",
        "if not self._allowance.take(self._loop.time()):",
        "if False:",
        _sync(_ATTACKS),
    ),
    Guard(
        "socket: slow reader",
        _CHASSIS + "clients.py",
        "if len(self._frames) >= self._frames_max or",
        "if False or",
        _chassis("clients"),
    ),
    Guard(
        "socket: slow reader of large frames",
        _CHASSIS + "clients.py",
        "or self._bytes > QUEUE_BYTES_MAX:",
        ":",
        _chassis("clients"),
    ),
    Guard(
        "socket: refreshed by another user",
        _CHASSIS + "sockets.py",
        "if claims.sub != client.user_id:",
        "if False:",
        _sync("sync_integration"),
    ),
    Guard(
        "socket: token's end",
        _CHASSIS + "sockets.py",
        "max(0.0, claims.exp - time.time())",
        "3600.0",
        _sync("sync_integration"),
    ),
    Guard(
        "socket: a session that ends",
        _CHASSIS + "clients.py",
        "if client.session_id in ended:",
        "if False:",
        _chassis("clients"),
    ),
    Guard(
        "socket: storm after a restart",
        _CHASSIS + "clients.py",
        "int((turn + random.random()) * 1000 / RECONNECTS_PER_S)",
        "0",
        _chassis("clients"),
    ),
    Guard(
        "socket: private events",
        _SYNC + "hub.py",
        "        if not event.public:\n            return\n",
        "",
        _sync("hub"),
    ),
    Guard(
        "socket: a cursor from before the kept day",
        _SYNC + "hub.py",
        "if after < page.floor:",
        "if False:",
        _sync("operation_integration", "test_cursors_from_before_the_kept_day_get_a_resync"),
    ),
    Guard(
        "socket: another customer's cursor",
        _SYNC + "hub.py",
        "purpose=_PURPOSE, caller=user_id).position",
        "purpose=_PURPOSE, caller=UUID(int=0)).position",
        _sync("sync_integration"),
    ),
    Guard(
        "events: sealed fields",
        _SYNC + "catch_up.py",
        'if not (name.startswith("sealed_") or name.endswith("_sealed"))',
        "",
        _sync("catch_up_integration"),
    ),
    Guard(
        "events: private ones for outsiders",
        _SYNC + "catch_up.py",
        "for event in await log.read_types(after, last, types) if event.public]",
        "for event in await log.read_types(after, last, types)]",
        _sync("catch_up_integration"),
    ),
    Guard(
        "webhooks: any number of answers that are not written down",
        _SYNC + "endpoint.py",
        " and len(self.sending) < open_max:",
        ":",
        _sync("endpoint"),
    ),
)
