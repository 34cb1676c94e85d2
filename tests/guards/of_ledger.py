"""What guards money: sums, floors, holds, limits, once per key, rules that fire once and never in a circle."""

from functools import partial

from guard import Guard, tests_in

_SOURCE = "services/ledger-transfer/src/ledger_transfer/"
_EVENTS = "libs/events/src/events/"


_tests = partial(tests_in, "services/ledger-transfer/tests")


GUARDS = (
    # Sums and floors.
    Guard(
        "ledger: legs that do not sum to zero",
        _SOURCE + "state.py",
        '        if total:\n            raise UnbalancedLegsError(f"legs sum to {totals}")\n',
        "        pass\n",
        _tests("accounts::legs_that_do_not_sum_to_zero_are_a_bug"),
    ),
    Guard(
        "ledger: a stated balance that does not follow",
        _SOURCE + "state.py",
        "if account.balance_minor + leg.amount_minor != balance_minor:",
        "if False:",
        _tests("accounts::a_stated_balance_that_does_not_follow_is_a_bug"),
    ),
    Guard(
        "ledger: a floor overdrawn",
        _SOURCE + "transfers.py",
        "    if source.available_minor - request.amount_minor < source.floor_minor:\n"
        "        raise InsufficientFunds(spendable_minor(source))\n",
        "",
        _tests("transfers::the_floor_is_kept_to_the_paisa"),
    ),
    Guard(
        "ledger: a floor overdrawn by a paisa",
        _SOURCE + "transfers.py",
        "source.available_minor - request.amount_minor < source.floor_minor",
        "source.available_minor - request.amount_minor < source.floor_minor - 1",
        _tests("transfers::the_floor_is_kept_to_the_paisa"),
    ),
    Guard(
        "ledger: held money spent",
        _SOURCE + "state.py",
        "return self.balance_minor - self.held_minor",
        "return self.balance_minor",
        _tests("commands_integration::a_hold_is_captured_in_part_and_the_rest_is_given_back"),
    ),
    Guard(
        "ledger: one currency taken for another",
        _SOURCE + "transfers.py",
        "    if not request.currency == source.currency == target.currency:\n        raise CurrencyMismatch()\n",
        "",
        _tests("transfers"),
    ),
    Guard(
        "ledger: closed and frozen accounts",
        _SOURCE + "transfers.py",
        'if source.status != "active" or target.status != "active":',
        "if False:",
        _tests("transfers"),
    ),
    Guard(
        "ledger: a fixed deposit as an account to pay from",
        _SOURCE + "transfers.py",
        'if "fixed_deposit" in (source.kind, target.kind):',
        "if False:",
        _tests("transfers"),
    ),
    Guard(
        "ledger: an account to itself",
        _SOURCE + "transfers.py",
        "    if source is target:\n        raise SameAccount()\n",
        "",
        _tests("transfers"),
    ),
    # Once.
    Guard(
        "ledger: a key with another body",
        _EVENTS + "schema.sql",
        "THEN 'duplicate' ELSE 'reused' END;",
        "THEN 'duplicate' ELSE 'duplicate' END;",
        ("libs/events/tests/test_log.py",),
    ),
    Guard(
        "ledger: a key with another body that would be refused",
        _EVENTS + "decisions.py",
        "if request_hash is not None and found.request_hash != request_hash:",
        "if False:",
        _tests("ledger_integration::a_key_used_for_another_request_is_refused"),
    ),
    Guard(
        "ledger: a field of the body that makes no other request",
        _SOURCE + "idempotency.py",
        "        request.memo,\n",
        "",
        _tests("transfers::every_field_of_the_body_makes_another_request"),
    ),
    Guard(
        "ledger: a key of all customers",
        _SOURCE + "idempotency.py",
        'return derived_id(user_id, "transfer", idempotency_key)',
        'return derived_id(UUID(int=0), "transfer", idempotency_key)',
        _tests("transfers::a_key_names_one_transfer_of_one_customer"),
    ),
    Guard(
        "ledger: a refusal by a stale state",
        _EVENTS + "decisions.py",
        "                if not await self._is_confirmed(entry, version, epoch, ahead):\n"
        "                    continue\n"
        "                # Looked for only now",
        "                # Looked for only now",
        ("libs/events/tests/test_decisions.py::test_a_stale_replica_does_not_refuse",),
    ),
    Guard(
        "ledger: an append on a version that is not there any more",
        _EVENTS + "decisions.py",
        "(StreamAppend(stream, events, version), *also),",
        "(StreamAppend(stream, events), *also),",
        _tests("postgres_machine"),
    ),
    Guard(
        "ledger: a captured hold captured again",
        _SOURCE + "state.py",
        "holds={key: other for key, other in state.holds.items() if key != transfer_id},",
        "holds=state.holds,",
        _tests("commands_integration::a_hold_is_captured_in_part_and_the_rest_is_given_back"),
    ),
    Guard(
        "ledger: more captured than held",
        _SOURCE + "holds.py",
        "    if amount > hold.amount_minor:\n        raise CaptureTooLarge()\n",
        "",
        _tests("commands_integration::a_hold_is_captured_in_part_and_the_rest_is_given_back"),
    ),
    Guard(
        "ledger: an expired hold captured",
        _SOURCE + "deciding.py",
        "beforehand=lapsed(state, now))",
        "beforehand=())",
        _tests("commands_integration::an_expired_hold_holds_nothing_recorded_or_not"),
    ),
    Guard(
        "ledger: a reversal reversed",
        _SOURCE + "reversals.py",
        "    if transfer.reverses is not None:\n        raise NotReversible()\n",
        "",
        _tests("commands_integration::a_transfer_is_taken_back_once_by_who_may"),
    ),
    Guard(
        "ledger: anybody reverses",
        _SOURCE + "api_transfers.py",
        'if "transfers:reverse" not in caller.scopes:',
        "if False:",
        _tests("commands_integration::a_transfer_is_taken_back_once_by_who_may"),
    ),
    Guard(
        "ledger: a movement of ours counted twice when it is reported back",
        _SOURCE + "accounts.py",
        "    return any(\n        leg.account_id == account_id",
        "    return False and any(\n        leg.account_id == account_id",
        _tests("accounts::a_transfer_reported_back_settles_and_posts_nothing"),
    ),
    Guard(
        "ledger: other money taken for an echo",
        _SOURCE + "accounts.py",
        "        and leg.amount_minor == _signed(movement)\n",
        "",
        _tests("accounts::other_money_with_our_reference_is_new_money"),
    ),
    Guard(
        "ledger: movements before their account",
        _SOURCE + "accounts.py",
        "for movement in waiting.in_order() if waiting else ():",
        "for movement in ():",
        _tests("accounts::a_movement_before_its_account_waits_and_is_posted_with_the_opening"),
    ),
    # Limits and step-up.
    Guard(
        "ledger: limits",
        _SOURCE + "transfers.py",
        "        raise LimitExceeded(standing)\n",
        "        pass\n",
        _tests("transfers::a_limit_that_is_exceeded_is_recorded_with_its_window"),
    ),
    Guard(
        "ledger: a day that begins at UTC midnight",
        _SOURCE + "limits.py",
        "int((at.timestamp() + _IST_OFFSET_S) // _DAY_S)",
        "int(at.timestamp() // _DAY_S)",
        _tests("limits::midnight_in_india_begins_a_day_a_week_and_a_month"),
    ),
    Guard(
        "ledger: a week given back in the next",
        _SOURCE + "limits.py",
        "self.weekly_minor - amount_minor if consumed.week == then.week else self.weekly_minor,",
        "self.weekly_minor - amount_minor,",
        _tests("limits::only_the_windows_of_its_time_get_something_back"),
    ),
    Guard(
        "ledger: a reversal that gives nothing back to the limits",
        _SOURCE + "state.py",
        "return _replace(state, usage=_restored(state, event.currency, event.amount_minor, event.consumed_at))",
        "return state",
        _tests("commands_integration::a_transfer_is_taken_back_once_by_who_may"),
    ),
    Guard(
        "ledger: limits raised without proof",
        _SOURCE + "allowances.py",
        "step_up_jti=_raise_cleared(state, max(raised), step_up) if raised else None,",
        "step_up_jti=None,",
        _tests("commands_integration::limits_are_lowered_at_once_and_raised_with_step_up"),
    ),
    Guard(
        "ledger: a step-up for another amount or payee",
        _SOURCE + "transfers.py",
        "if (step_up.amount_minor, step_up.currency, step_up.to_account_id) != (amount_minor, currency, to_account_id)",
        "if False",
        _tests("commands_integration::above_the_threshold_one_token_is_good_for_one_transfer_of_its_amount_and_payee"),
    ),
    Guard(
        "ledger: a step-up used twice",
        _SOURCE + "transfers.py",
        "if step_up.jti in state.step_ups:",
        "if False:",
        _tests("commands_integration::above_the_threshold_one_token_is_good_for_one_transfer_of_its_amount_and_payee"),
    ),
    Guard(
        "ledger: step-up item by item",
        _SOURCE + "bulk.py",
        "totals[item.currency] = totals.get(item.currency, 0) + item.amount_minor",
        "totals[item.currency] = max(totals.get(item.currency, 0), item.amount_minor)",
        _tests("commands_integration", "api_integration"),
    ),
    Guard(
        "ledger: a part of all or nothing",
        _SOURCE + "bulk.py",
        "            decision.record(refused(request, refusal, decision.now))\n            return\n",
        "            decision.record(refused(request, refusal, decision.now))\n            break\n",
        _tests("commands_integration::bulk_all_or_nothing_and_each_for_itself"),
    ),
    Guard(
        "ledger: an account that operations have frozen thawed by the customer",
        _SOURCE + "freezing.py",
        '    if account.frozen_by == "ops" and by != "ops":\n        raise FrozenByOps()\n',
        "",
        _tests("commands_integration::a_frozen_account_takes_no_commands_and_every_fact"),
    ),
    # Rules.
    Guard(
        "rules: money in a circle",
        _SOURCE + "rule_commands.py",
        "    if cycle is not None:\n        raise RuleCycle(cycle)\n",
        "",
        _tests("rule_commands"),
    ),
    Guard(
        "rules: a worst case without step-up",
        _SOURCE + "rule_commands.py",
        "step_up_jti=_cleared(state, terms, worst, clearance),",
        "step_up_jti=None,",
        _tests("rule_commands::above_the_threshold_it_is_for_the_worst_case_of_a_day_and_the_target"),
    ),
    Guard(
        "rules: what is in flight filled up again",
        _SOURCE + "replenish.py",
        'return "below_threshold" if target.available_minor + in_flight < threshold else "in_flight"',
        'return "below_threshold"',
        _tests("replenish::what_is_in_flight_counts"),
    ),
    Guard(
        "rules: a gap below zero filled beyond the worst case",
        _SOURCE + "replenish.py",
        "return min(gap, target_minor)",
        "return gap",
        _tests("replenish::a_gap_below_zero_is_filled_no_further_than_the_worst_case_that_was_agreed_to"),
    ),
    Guard(
        "rules: a decline storm",
        _SOURCE + "replenish.py",
        "if due is None and rule.retry_at is not None and decision.now < rule.retry_at:",
        "if False:",
        _tests("replenish::a_decline_does_not_storm"),
    ),
    Guard(
        "rules: caps",
        _SOURCE + "replenish.py",
        "        amount = min(amount, caps.per_day_minor - moved.day_minor)\n",
        "        pass\n",
        _tests("replenish"),
    ),
    Guard(
        "rules: a reversal undone",
        _SOURCE + "replenish.py",
        "            case TransferCompleted(reverses=UUID()):\n"
        "                pass  # Operations have just taken it back: moving it again at once would undo that.\n",
        "",
        _tests("replenish::a_reversal_is_not_undone_by_the_rule"),
    ),
    Guard(
        "rules: a deposit that matures taken for income",
        _SOURCE + "replenish.py",
        'if not isinstance(event, AccountPosted) or event.type == "fixed_deposit":',
        "if not isinstance(event, AccountPosted):",
        _tests("replenish::what_is_no_credit_for_the_rule"),
    ),
    # Not the id of its append alone: what was made is counted in the stream, and the timer decides on that.
    Guard(
        "rules: a run made again",
        _SOURCE + "rulebook.py",
        "                counted_until=event.due_at or rule.counted_until,\n                moved=",
        "                counted_until=rule.counted_until,\n                moved=",
        _tests("replenish::an_occurrence_is_made_once_however_often_the_timer_looks"),
    ),
    Guard(
        "rules: a paused rule woken",
        _SOURCE + "replenish.py",
        '    if rule.status == "paused":\n        return "paused"\n',
        "",
        _tests("replenish", "rules_machine"),
    ),
    Guard(
        "rules: what is due decided by the table that lags",
        _SOURCE + "replenish.py",
        "if occasion is not None and occurrence in (None, occasion.occurrence):",
        "if occasion is not None:",
        _tests("replenish::what_is_due_by_now_is_no_other_than_what_was_seen_to_be"),
    ),
    Guard(
        "rules: of somebody who is erased",
        _SOURCE + "rule_commands.py",
        "        decision.record(RulesEnded(ended_at=decision.now))\n",
        "        pass\n",
        _tests("rule_commands::when_the_customer_is_erased_all_rules_end"),
    ),
)
