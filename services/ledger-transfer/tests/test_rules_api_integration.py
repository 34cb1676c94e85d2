"""Rules over HTTP and a real event store: right answers, and no harm from wrong questions."""

import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec
import pytest
from events.contracts.identity import UserErased
from events.contracts.ledger import AccountPosted, TransferCompleted, TransferSettled
from events.contracts.ledger_rules import RuleFired
from events.envelope import derived_id, new_id
from events.projections import Projections, rebuild
from events.store import StreamAppend
from ledger_transfer.projections import PROJECTIONS
from ledger_transfer.reactions import Reactions

sys.path.insert(0, str(Path(__file__).parent))

from rule_world import THRESHOLD_MINOR, Client, RuleWorld, client_app, rule_world

if TYPE_CHECKING:
    from provision import Cell

pytestmark = pytest.mark.integration


@pytest.fixture
async def world(cell: "Cell") -> AsyncIterator[RuleWorld]:
    async with rule_world(cell) as found:
        yield found


@pytest.fixture
async def clients(world: RuleWorld) -> AsyncIterator[tuple[Client, Client]]:
    """Two customers with ₹10,000 in savings and ₹1,000 in the wallet."""
    async with client_app(world) as http:
        customers = [await world.customer(savings=10_000_00, wallet=1_000_00) for _ in range(2)]
        yield Client(world, http, customers[0]), Client(world, http, customers[1])


@pytest.fixture
def client(clients: tuple[Client, Client]) -> Client:
    return clients[0]


async def post(client: Client, signed_minor: int, item_id: str) -> None:
    """The bank reports a movement, and the service reacts."""
    await client.world.bank_says(client.customer.salary(signed_minor, item_id))
    await client.world.react()


async def test_the_life_of_a_rule(client: Client) -> None:
    await client.world.linked(client.customer)
    made = await client.call("POST", json=client.body(), Idempotency_Key="k1")
    assert made.status_code == 201
    rule_id = made.json()["rule_id"]
    assert made.json() == {
        **client.body(),
        "rule_id": rule_id,
        "status": "active",
        "version": 1,
        "currency": "INR",
        "caps": {"per_day": "200000.00", "per_month": None, "executions_per_day": None},
        "worst_case": {"per_day": "200000.00", "per_week": "1400000.00", "per_month": "6200000.00"},
        "next_run_at": None,
    }
    shown = (await client.call("GET", f"/{rule_id}", X_Consistency_Token=made.headers["X-Consistency-Token"])).json()
    assert shown.items() >= made.json().items()
    assert (shown["executions"], shown["last_fired_at"]) == (0, None)

    changed = await client.call(
        "PUT", f"/{rule_id}", json=client.body(name="More", amount={"type": "to_target", "target": "1500.00"})
    )
    assert (changed.status_code, changed.json()["version"], changed.json()["name"]) == (200, 2, "More")
    again = await client.call(
        "PUT", f"/{rule_id}", json=client.body(name="More", amount={"type": "to_target", "target": "1500.00"})
    )
    assert again.json()["version"] == 2

    paused = await client.call("PATCH", f"/{rule_id}/status", json={"status": "paused"})
    assert (paused.status_code, paused.json()["status"]) == (200, "paused")
    assert (await client.call("GET", f"/{rule_id}")).json()["status"] == "paused"
    resumed = await client.call("PATCH", f"/{rule_id}/status", json={"status": "active"})
    assert resumed.json()["status"] == "active"

    deleted = await client.call("DELETE", f"/{rule_id}")
    assert deleted.status_code == 204
    assert deleted.content == b""
    for method, path, body in (
        ("GET", f"/{rule_id}", None),
        ("PUT", f"/{rule_id}", client.body()),
        ("PATCH", f"/{rule_id}/status", {"status": "paused"}),
        ("DELETE", f"/{rule_id}", None),
        ("POST", f"/{rule_id}/backtest", {"from": "2026-01-01", "to": "2026-02-01"}),
        ("POST", "/check", {"dry_run": True, "rule_id": rule_id}),
        ("POST", "/check", {"rule_id": rule_id}),
        ("GET", f"/{rule_id}/history", None),
    ):
        answer = await client.call(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "rule_not_found"), (method, path)


async def test_a_salary_fires_a_rule_in_its_own_append(client: Client) -> None:
    """Posting, transfer and firing are one append; a repeated delivery does nothing; the platform's echo settles."""
    world, customer = client.world, client.customer
    await world.linked(customer)
    made = await client.call(
        "POST",
        json=client.body(
            name="Save a fifth",
            trigger={"type": "percentage", "of": "credit", "percent": "20", "min_credit": "10000.00"},
            amount={"type": "percent_of_trigger"},
        ),
    )
    assert made.status_code == 201
    await post(client, 85_000_00, "salary-feb")
    await world.deliver("reactions again", Reactions(world.ledger), 50)  # from the start of the log
    stream = await world.store.read_stream(f"ledger-{customer.user_id}")
    posted, transfer, fired = stream[-3:]
    assert isinstance(posted.payload, AccountPosted)
    assert isinstance(transfer.payload, TransferCompleted)
    assert isinstance(fired.payload, RuleFired)
    assert [transfer.event_id, fired.event_id] == [derived_id(posted.event_id, 1), derived_id(posted.event_id, 2)]
    assert transfer.payload.transfer_id == transfer.event_id
    assert [leg.balance_after_minor for leg in transfer.payload.legs] == [78_000_00, 18_000_00]
    history = (await client.call("GET", "/history")).json()
    assert history["items"] == (await client.call("GET", f"/{made.json()['rule_id']}/history")).json()["items"]
    [item] = history["items"]
    assert item | {"at": 0} == {
        "rule_id": made.json()["rule_id"],
        "version": 1,
        "occurrence": "credit:bfc:salary-feb",
        "outcome": "fired",
        "reason": None,
        "transfer_id": str(transfer.event_id),
        "amount": "17000.00",
        "currency": "INR",
        "available": None,
        "missed": 0,
        "retry_at": None,
        "at": 0,
    }
    shown = (await client.call("GET")).json()["items"][0]
    assert (shown["executions"], shown["last_fired_at"]) == (1, item["at"])
    # The bank reports our own transfer back: it settles.
    await world.bank_says(
        msgspec.structs.replace(customer.salary(-17_000_00, "echo"), reference=str(transfer.event_id))
    )
    await world.react()
    assert isinstance((await world.events(customer))[-1], TransferSettled)


async def test_the_same_request_again_gets_the_first_answer(client: Client) -> None:
    first = await client.call("POST", json=client.body(), Idempotency_Key="k1")
    again = await client.call("POST", json=client.body(), Idempotency_Key="k1")
    assert (again.status_code, again.json()) == (201, first.json())
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    other = await client.call("POST", json=client.body(name="Other"), Idempotency_Key="k1")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert len((await client.call("GET")).json()["items"]) == 1
    await client.call("DELETE", f"/{first.json()['rule_id']}")
    gone = await client.call("POST", json=client.body(), Idempotency_Key="k1")
    assert (gone.status_code, gone.json()) == (201, first.json()), "deleted or not: the request was answered"


REFUSED: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"name": ""}, 400, "invalid_request", "name"),
    ({"name": "a\tb"}, 400, "invalid_request", "name"),
    ({"name": " "}, 400, "invalid_request", "name"),
    ({"currency": "XXX"}, 400, "invalid_currency", "currency"),
    ({"rate": 1}, 400, "invalid_request", "rate"),
    ({"trigger": {"type": "weather"}}, 400, "invalid_request", "trigger.type"),
    ({"trigger": {"type": "balance_below", "threshold": "-1"}}, 400, "invalid_amount", "trigger.threshold"),
    ({"trigger": {"type": "balance_below", "threshold": "0"}}, 400, "invalid_amount", "trigger.threshold"),
    ({"trigger": {"type": "balance_below", "threshold": "1.234"}}, 400, "invalid_amount", "trigger.threshold"),
    ({"trigger": {"type": "balance_below", "threshold": "1e3"}}, 400, "invalid_amount", "trigger.threshold"),
    ({"trigger": {"type": "balance_below", "threshold": 5}}, 400, "invalid_request", "trigger.threshold"),
    ({"amount": {"type": "to_target", "target": "999.99"}}, 400, "invalid_request", "amount.target"),
    ({"amount": {"type": "fixed", "amount": "9" * 14}}, 400, "invalid_amount", "amount.amount"),
    ({"amount": {"type": "percent_of_trigger"}}, 400, "invalid_request", "amount.type"),
    ({"caps": {"per_day": "0"}}, 400, "invalid_amount", "caps.per_day"),
    ({"caps": {"executions_per_day": 0}}, 400, "invalid_request", "caps.executions_per_day"),
    ({"source_account_id": "7"}, 400, "invalid_request", "source_account_id"),
    ({"source_account_id": "00000000-0000-0000-0000-000000000001"}, 404, "account_not_found", None),
]


async def test_what_is_refused(client: Client) -> None:
    for changes, status, code, field in REFUSED:
        answer = await client.call("POST", json=client.body(**changes))
        assert (answer.status_code, answer.json()["code"]) == (status, code), (changes, answer.text)
        if field is not None:
            assert answer.json()["errors"][0]["field"] == field
    assert (await client.call("GET")).json()["items"] == []


SCHEDULES: list[tuple[dict[str, Any], str | None]] = [
    ({"every": "day", "at": "09:00"}, None),
    ({"every": "week", "on": "friday", "at": "09:00"}, None),
    ({"every": "week", "on": 7, "at": "09:00"}, None),
    ({"every": "month", "on": "last", "at": "23:59"}, None),
    ({"every": "month", "on": 31, "at": "00:00"}, None),
    ({"every": "month", "at": "00:00"}, None),
    ({"every": "day", "on": 3, "at": "09:00"}, "trigger.schedule.on"),
    ({"every": "week", "on": 8, "at": "09:00"}, "trigger.schedule.on"),
    ({"every": "week", "on": "someday", "at": "09:00"}, "trigger.schedule.on"),
    ({"every": "month", "on": 32, "at": "09:00"}, "trigger.schedule.on"),
    ({"every": "month", "on": 0, "at": "09:00"}, "trigger.schedule.on"),
    ({"every": "month", "on": "first", "at": "09:00"}, "trigger.schedule.on"),
    ({"every": "year", "at": "09:00"}, "trigger.schedule.every"),
    ({"every": "day", "at": "24:00"}, "trigger.schedule.at"),
    ({"every": "day", "at": "9:00"}, "trigger.schedule.at"),
    ({"every": "day", "at": "٠٩:٠٠"}, "trigger.schedule.at"),
    ({"every": "day"}, "trigger.schedule.at"),
]


async def test_schedules_and_percentages(client: Client) -> None:
    for schedule, field in SCHEDULES:
        body = client.body(trigger={"type": "scheduled", "schedule": schedule}, amount={"type": "fixed", "amount": "1"})
        answer = await client.call("POST", json=body)
        if field is None:
            assert answer.status_code == 201, answer.text
            assert answer.json()["next_run_at"] > datetime.now(UTC).isoformat()[:19]
            assert answer.json()["trigger"]["timezone"] == "Asia/Kolkata"
        else:
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field), schedule
    zone = {"type": "scheduled", "schedule": {"every": "day", "at": "09:00"}, "timezone": "../../etc/passwd"}
    answer = await client.call("POST", json=client.body(trigger=zone, amount={"type": "fixed", "amount": "1"}))
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, "trigger.timezone")
    usable: tuple[tuple[Any, str], ...] = (
        ("20", "20.00"),
        (20, "20.00"),
        (12.5, "12.50"),
        ("0.01", "0.01"),
        (100, "100.00"),
    )
    for percent, shown in usable:
        body = client.body(trigger={"type": "percentage", "percent": percent}, amount={"type": "percent_of_trigger"})
        assert (await client.call("POST", json=body)).json()["trigger"]["percent"] == shown
    unusable: tuple[Any, ...] = (0, "0", "-5", 101, "100.01", "12.345", 12.345, "NaN", "1e1", 1e300, "", True, None)
    for percent in unusable:
        body = client.body(trigger={"type": "percentage", "percent": percent}, amount={"type": "percent_of_trigger"})
        assert (await client.call("POST", json=body)).status_code == 400, percent


async def test_a_circle_is_refused_and_named(client: Client) -> None:
    first = (await client.call("POST", json=client.body())).json()["rule_id"]
    body = client.body(source_account_id=str(client.customer.wallet), target_account_id=str(client.customer.savings))
    answer = await client.call("POST", json=body)
    assert (answer.status_code, answer.json()["code"], answer.json()["rule_ids"]) == (422, "rule_cycle", [first])


async def test_a_large_worst_case_needs_a_step_up(client: Client) -> None:
    body = client.body(caps={"per_day": "200000.01"}, amount={"type": "fixed", "amount": "5000.00"})
    asked = await client.call("POST", json=body, Idempotency_Key="k")
    assert (asked.status_code, asked.json()["code"]) == (403, "step_up_required")
    wanted = {"amount": "200000.01", "currency": "INR", "to_account_id": str(client.customer.wallet)}
    assert (asked.json()["step_up"], asked.json()["enrol"]) == (wanted, True)
    for changes in ({"to_account_id": str(client.customer.savings)}, {"currency": "USD"}, {"amount_minor": 5}):
        token = client.step_up(THRESHOLD_MINOR + 1, **changes)
        assert (await client.call("POST", json=body, X_Step_Up_Token=token)).status_code == 403
    token = client.step_up(THRESHOLD_MINOR + 1)
    made = await client.call("POST", json=body, Idempotency_Key="k", X_Step_Up_Token=token)
    assert made.status_code == 201
    again = await client.call("POST", json=body, X_Step_Up_Token=token)
    assert (again.status_code, again.json()["code"]) == (403, "step_up_required"), "a token is good once"
    replayed = await client.call("POST", json=body, Idempotency_Key="k", X_Step_Up_Token=token)
    assert (replayed.status_code, replayed.headers["Idempotent-Replayed"]) == (201, "true")
    more = await client.call("PUT", f"/{made.json()['rule_id']}", json=body | {"caps": {"per_day": "200000.02"}})
    assert (more.status_code, more.json()["code"]) == (403, "step_up_required")


async def test_another_customers_rule_does_not_exist(clients: tuple[Client, Client]) -> None:
    mine, theirs = clients
    rule_id = (await mine.call("POST", json=mine.body())).json()["rule_id"]
    for method, path, body in (
        ("GET", f"/{rule_id}", None),
        ("GET", f"/{rule_id}/history", None),
        ("PUT", f"/{rule_id}", theirs.body()),
        ("PATCH", f"/{rule_id}/status", {"status": "paused"}),
        ("DELETE", f"/{rule_id}", None),
        ("POST", f"/{rule_id}/backtest", {"from": "2026-01-01", "to": "2026-02-01"}),
        ("POST", "/check", {"dry_run": True, "rule_id": rule_id}),
        ("POST", "/check", {"rule_id": rule_id}),
    ):
        answer = await theirs.call(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (404, "rule_not_found"), (method, path)
    foreign = theirs.body(source_account_id=str(mine.customer.savings))
    assert (await theirs.call("POST", json=foreign)).json()["code"] == "account_not_found"
    assert (await theirs.call("GET")).json()["items"] == []
    assert (await mine.call("GET", f"/{rule_id}")).json()["status"] == "active"


async def test_lists_are_paged(clients: tuple[Client, Client]) -> None:
    client, other = clients
    await client.world.linked(client.customer)
    for number in range(5):
        body = client.body(
            name=f"rule {number}",
            trigger={"type": "percentage", "percent": 1},
            amount={"type": "percent_of_trigger"},
        )
        assert (await client.call("POST", json=body)).status_code == 201
    await post(client, 1_000_00, "salary-1")
    for path, key in (("", "name"), ("/history", "rule_id")):
        whole = (await client.call("GET", path)).json()["items"]
        assert len({item[key] for item in whole}) == 5
        pages, cursor = [], ""
        while cursor is not None:
            page = (await client.call("GET", f"{path}?limit=2{cursor and f'&cursor={cursor}'}")).json()
            pages += page["items"]
            cursor = page["next_cursor"]
        assert pages == whole
        stolen = (await client.call("GET", f"{path}?limit=2")).json()["next_cursor"]
        assert (await other.call("GET", f"{path}?cursor={stolen}")).json()["code"] == "invalid_cursor"
        assert (await client.call("GET", f"{path}?cursor=x{stolen}")).json()["code"] == "invalid_cursor"
        assert (await client.call("GET", f"{path}?colour=red")).status_code == 400


async def test_check_tells_why_and_a_real_one_acts_once(client: Client) -> None:
    world = client.world
    await world.linked(client.customer)
    filled = (await client.call("POST", json=client.body())).json()["rule_id"]
    share = client.body(trigger={"type": "percentage", "percent": 10}, amount={"type": "percent_of_trigger"})
    await client.call("POST", json=share)
    answers = (await client.call("POST", "/check", json={"dry_run": True})).json()["items"]
    assert [(item["would_fire"], item["reason"]) for item in answers] == [
        (False, "above_threshold"),
        (False, "no_credit"),
    ]
    # The wallet falls below its threshold while the rule is paused: nothing happens until a check is asked for.
    await client.call("PATCH", f"/{filled}/status", json={"status": "paused"})
    [paused] = (await client.call("POST", "/check", json={"dry_run": True, "rule_id": filled})).json()["items"]
    assert (paused["would_fire"], paused["reason"]) == (False, "paused")
    assert (await client.call("POST", "/check")).json()["items"][0]["fired"] is False
    await client.call(
        "PUT",
        f"/{filled}",
        json=client.body(
            trigger={"type": "balance_below", "threshold": "900000.00"}, amount={"type": "fixed", "amount": "50.00"}
        ),
    )
    before = len(await world.events(client.customer))
    assert (await client.call("PATCH", f"/{filled}/status", json={"status": "active"})).status_code == 200
    [would] = (await client.call("POST", "/check", json={"dry_run": True, "rule_id": filled})).json()["items"]
    assert (would["would_fire"], would["amount"], would["reason"]) == (True, "50.00", "below_threshold")
    assert len(await world.events(client.customer)) == before + 3  # resumed, and fired at once
    first = await client.call("POST", "/check", json={"rule_id": filled}, Idempotency_Key="c1")
    [did] = first.json()["items"]
    assert (did["fired"], did["amount"], did["transfer_id"] is not None) == (True, "50.00", True)
    again = await client.call("POST", "/check", json={"rule_id": filled}, Idempotency_Key="c1")
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json()["items"][0]["transfer_id"] == did["transfer_id"]
    assert len(await world.events(client.customer)) == before + 5


async def test_a_refusal_is_explained_in_the_history(client: Client) -> None:
    body = client.body(
        trigger={"type": "balance_below", "threshold": "99999.00"}, amount={"type": "to_target", "target": "99999.00"}
    )
    made = await client.call("POST", json=body)
    assert made.status_code == 201
    [item] = (await client.call("GET", f"/{made.json()['rule_id']}/history")).json()["items"]
    assert (item["outcome"], item["reason"], item["amount"], item["available"]) == (
        "refused",
        "insufficient_funds",
        "98999.00",
        "10000.00",
    )
    assert item["retry_at"] > item["at"]
    [why] = (await client.call("POST", "/check", json={"dry_run": True})).json()["items"]
    assert (why["would_fire"], why["reason"], why["amount"]) == (False, "insufficient_funds", "98999.00")


async def test_a_backtest_over_the_customers_own_past(client: Client) -> None:
    await client.world.linked(client.customer)
    for number in range(3):
        await post(client, 50_000_00, f"salary-{number}")
    share = client.body(trigger={"type": "percentage", "percent": 10}, amount={"type": "percent_of_trigger"})
    rule_id = (await client.call("POST", json=share)).json()["rule_id"]
    before = await client.world.events(client.customer)
    answer = await client.call("POST", f"/{rule_id}/backtest", json={"from": "2026-01-01", "to": "2026-12-31"})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["fired"], told["refused"], told["total"], told["truncated"]) == (3, 0, "15000.00", False)
    assert [(item["amount"], item["target_balance"]) for item in told["items"]] == [
        ("5000.00", "6000.00"),
        ("5000.00", "11000.00"),
        ("5000.00", "16000.00"),
    ]
    assert await client.world.events(client.customer) == before, "nothing is written"
    for body in (
        {"from": "2026-02-01", "to": "2026-01-01"},
        {"from": "2020-01-01", "to": "2026-01-01"},
        {"from": "x", "to": "y"},
        {"from": "2126-01-01", "to": "2126-02-01"},
    ):
        assert (await client.call("POST", f"/{rule_id}/backtest", json=body)).status_code == 400, body


async def test_live_rows_equal_rebuilt_ones_and_an_erased_customers_are_gone(
    client: Client, clients: tuple[Client, Client], cell: "Cell"
) -> None:
    world = client.world
    for each in clients:
        await world.linked(each.customer)
        made = [(await each.call("POST", json=each.body(name=f"r{n}"))).json()["rule_id"] for n in range(3)]
        await post(each, -500_00, "spent")
        await each.call("PUT", f"/{made[0]}", json=each.body(name="changed"))
        await each.call("DELETE", f"/{made[1]}")
        daily = each.body(
            trigger={"type": "scheduled", "schedule": {"every": "day", "at": "09:00"}},
            amount={"type": "fixed", "amount": "1.00"},
        )
        await each.call("POST", json=daily)
        await world.project(batch=2)
    world.now = datetime.now(UTC) + timedelta(days=3)
    await world.timer.tick()
    await world.project(batch=2)
    erased = UserErased(user_id=client.customer.user_id, erased_at=world.now)
    await world.stores["identity"].append(
        [StreamAppend(f"user-{client.customer.user_id}", (erased,))], event_id=new_id()
    )
    await world.project(batch=2)
    live = {}
    for table in ("rule", "rule_history"):
        live[table] = sorted(map(repr, await world.db.fetch(f"SELECT * FROM {table}")))
        assert str(client.customer.user_id) not in "".join(live[table])
        assert str(clients[1].customer.user_id) in "".join(live[table])
    connection = await asyncpg.connect(cell.database_url("ledger_transfer"))
    head = (await world.log())[-1].position
    await rebuild(Projections(PROJECTIONS), world.store, connection, "rebuilt", up_to=head)
    for table in ("rule", "rule_history"):
        assert sorted(map(repr, await connection.fetch(f"SELECT * FROM {table}"))) == live[table]
    await connection.close()
