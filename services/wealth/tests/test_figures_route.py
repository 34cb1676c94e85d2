"""Every figure as a client gets it: it opens up to events, its parts sum to it, all at one position."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
import slow_oracle as oracle
from events.contracts import identity, ledger
from events.envelope import new_id
from life_log import Log, a_life, life_log, life_user
from read_side import open_client
from test_against_the_log import NOW, fill
from test_net_worth_route import AT, BANK, linked, loan, opened, position, trade
from test_net_worth_route import BROKER as VYOMO
from wealth import queries
from wealth.api import routes
from wealth.desk import Desk
from wealth.explaining import FIGURES, ITEM_FIGURES
from wealth.insights import Thresholds

pytestmark = pytest.mark.integration
Client = httpx.AsyncClient
ROUTES = ("net-worth", "performance", "health", "insights", "summary", "explain/total", "explain/xirr")


@pytest.fixture
async def october(world: Any, streams: Any) -> AsyncIterator[Client]:
    """A client on the last evening of the scenario."""
    desk = Desk(world.db, Thresholds(), clock=lambda: NOW)
    async with open_client(world, routes(world.db, desk, streams)) as opened_client:
        yield opened_client


async def get(client: Client, world: Any, user_id: UUID, path: str, status: int = 200) -> Any:
    response = await client.get(f"/api/wealth/{path}", headers=world.bearer(user_id))
    assert response.status_code == status, response.text
    return response.json()


def total(amounts: Any) -> Decimal:
    return sum((Decimal(amount) for amount in amounts), Decimal(0))


async def test_the_parts_of_every_figure_sum_to_it(world: Any, october: Client) -> None:
    life = a_life(12)
    log = list(life_log(life))
    async with world.db.acquire() as connection:
        await fill(connection, log)
    ids = {str(event.event_id) for event in log}
    opened_up = 0
    for person in life.people:
        user = life_user(person.who.bfc_customer_id)
        for figure in FIGURES:
            for more in ("", "?as_of=2026-05-17T10:00:00Z") if figure in ITEM_FIGURES else ("",):
                found = await get(october, world, user, f"explain/{figure}{more}")
                assert found["formula"]
                if found["value"] is None or not found["parts"]:
                    continue
                assert total(part["amount"] for part in found["parts"]) == Decimal(found["value"]), figure
                for part in found["parts"]:
                    events = part.get("events", [])
                    if events or part.get("days"):
                        pieces = [e["amount"] for e in events] + [d["amount"] for d in part.get("days", [])]
                        pieces += [part["earlier"]["amount"]] if part.get("earlier") else []
                        assert total(pieces) == Decimal(part["amount"]), (figure, part["name"])
                        opened_up += 1
                    elif figure != "health":
                        assert Decimal(part["amount"]) == 0, (figure, part["name"], "opens up to nothing")
                    assert {event["event_id"] for event in events} <= ids
    assert opened_up > 200


@pytest.mark.parametrize("figure", ["total", "realized_pnl", "end_value", "net_flows"])
async def test_what_comes_while_a_figure_is_explained_is_in_none_of_its_parts(
    world: Any, client: Client, monkeypatch: pytest.MonkeyPatch, figure: str
) -> None:
    user, wallet = new_id(), new_id()
    await world.append(f"user-{user}", linked("vyomo", "VY-1"))
    await world.append(f"ledger-{user}", opened(wallet, "trading_wallet", 5_00))
    await world.append(VYOMO, trade(3_00))
    await world.deliver()
    before = await get(client, world, user, f"explain/{figure}?limit=1")
    stamp, past_worth = queries.stamp, queries.past_worth

    async def meanwhile() -> None:
        payin = ledger.AccountPosted(
            account_id=wallet, platform="vyomo", type="wallet_movement", category="payin", item_id=str(new_id()),
            legs=(ledger.Leg(account_id=str(wallet), amount_minor=1_00, currency="INR", balance_after_minor=1),),
            occurred_at=datetime.now(UTC),
        )  # fmt: skip
        await world.append(f"ledger-{user}", payin)
        await world.append(VYOMO, trade(9_00))
        await world.deliver()

    async def stamp_then(*arguments: Any) -> Any:
        found = await stamp(*arguments)
        await meanwhile()
        return found

    async def past_worth_then(*arguments: Any) -> Any:
        found = await past_worth(*arguments)
        await meanwhile()
        return found

    monkeypatch.setattr(queries, "stamp", stamp_then)
    monkeypatch.setattr(queries, "past_worth", past_worth_then)
    during = await get(client, world, user, f"explain/{figure}?limit=1")
    assert during == before


async def test_xirr_can_be_computed_again_from_what_is_shown(world: Any, october: Client) -> None:
    life = a_life(5)
    checked = 0
    async with world.db.acquire() as connection:
        await fill(connection, list(life_log(life)))
    for person in life.people:
        user = life_user(person.who.bfc_customer_id)
        shown = await get(october, world, user, "explain/xirr")
        flows = [
            (datetime.fromisoformat(day["date"]).date(), int(Decimal(day["amount"]) * 100)) for day in shown["days"]
        ]
        if shown["value"] is None:
            assert shown["reason"]
            continue
        checked += 1
        assert oracle.irr(flows) == pytest.approx(float(shown["value"]), abs=1e-7)
        returns = await get(october, world, user, "explain/twr")
        product = 1.0
        for day in returns["days"]:
            product *= float(day["factor"])
        assert product - 1 == pytest.approx(float(returns["value"]), abs=1e-6)
        fall = await get(october, world, user, "explain/drawdown_max")
        assert fall["days"] == returns["days"]
        deepest, so_far, peak = 0.0, 1.0, 1.0
        for day in fall["days"]:
            so_far *= float(day["factor"])
            peak = max(peak, so_far)
            deepest = max(deepest, 1 - so_far / peak)
        assert deepest == pytest.approx(float(fall["value"]), abs=1e-6)
    assert checked >= 3


async def test_the_summary_is_every_answer_at_one_position(world: Any, october: Client) -> None:
    life = a_life(2)
    async with world.db.acquire() as connection:
        await fill(connection, list(life_log(life)))
    user = life_user(life.people[0].who.bfc_customer_id)
    summary = await get(october, world, user, "summary")
    assert summary["net_worth"] == await get(october, world, user, "net-worth")
    assert summary["health"] == await get(october, world, user, "health")
    assert summary["insights"] == (await get(october, world, user, "insights"))["items"]
    for answer in summary["performance"]:
        assert answer == await get(october, world, user, f"performance?period={answer['period_days']}")
        columns = ("start_value", "end_value", "net_flows", "gain")
        for column in columns:
            assert total(part[column] for part in answer["by_category"]) == Decimal(answer[column])
        assert len(answer["series"]) == answer["period_days"] + 1
        assert answer["end_value"] == answer["series"][-1]["value"] == summary["net_worth"]["total"]
    positions = {summary["position"], summary["net_worth"]["position"], summary["health"]["position"]}
    positions |= {answer["position"] for answer in summary["performance"]}
    assert len(positions) == 1
    assert summary["health"]["grade"]
    assert [factor["weight"] for factor in summary["health"]["factors"]] == [25, 20, 20, 20, 15]
    points = total(f["contribution"] for f in summary["health"]["factors"] if f["contribution"] is not None)
    assert points == Decimal(summary["health"]["score_exact"])
    assert all(insight["automated"] for insight in summary["insights"])


async def test_new_events_are_in_the_next_answer(world: Any, client: Client) -> None:
    """What is kept of a customer is not given again once their part of the read model has changed."""
    user, savings = new_id(), new_id()
    await world.append(f"user-{user}", linked("bfc", "BFC-1"))
    await world.append(f"ledger-{user}", opened(savings, "savings", 100))
    await world.deliver()
    assert (await get(client, world, user, "summary"))["net_worth"]["total"] == "1.00"
    await world.append(BANK, loan(30))
    await world.deliver()
    assert (await get(client, world, user, "summary"))["net_worth"]["total"] == "0.70"


async def test_a_new_day_has_other_figures(world: Any) -> None:
    """Without any event: periods end today, deposits mature, dates come near."""
    user, now = new_id(), NOW
    await world.append(f"user-{user}", linked("bfc", "BFC-1"))
    await world.append(f"ledger-{user}", opened(new_id(), "savings", 100))
    await world.deliver()
    desk = Desk(world.db, Thresholds(), clock=lambda: now)
    today = (await desk.look(user)).computed.performance[30].last_day
    assert (await desk.look(user)).computed.performance[30].last_day == today
    now += timedelta(days=1)
    assert (await desk.look(user)).computed.performance[30].last_day == today + timedelta(days=1)


async def test_who_was_looked_at_longest_ago_is_let_go(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wealth.desk.KEPT_MAX", 2)
    desk = Desk(world.db, Thresholds())
    users = [new_id() for _ in range(3)]
    looks = [(await desk.look(user)).computed for user in users]
    assert (await desk.look(users[1])).computed is looks[1]
    assert (await desk.look(users[0])).computed is not looks[0]
    assert (await desk.look(users[1])).computed is looks[1], "it was looked at after the other one"
    assert (await desk.look(users[2])).computed is not looks[2]


async def test_what_was_posted_and_what_was_stated_flow_together(world: Any, october: Client) -> None:
    """A position without a trade came with a value: with the wallet's opening it is one category's flow."""
    user = new_id()
    await world.append(f"user-{user}", linked("vyomo", "VY-1"))
    await world.append(f"ledger-{user}", opened(new_id(), "trading_wallet", 5_00))
    await world.append(linked("vyomo", "VY-1").platform_stream, position(2, 1_00))
    await world.deliver()
    found = await get(october, world, user, "explain/net_flows")
    trading = next(part for part in found["parts"] if part["name"] == "trading")
    assert trading["amount"] == found["value"] == "7.00"
    assert total(day["amount"] for day in trading["days"]) == Decimal("7.00")
    assert "events" not in trading, "the days say all of it"


async def test_an_empty_customer(world: Any, client: Client) -> None:
    user = new_id()
    for path in ROUTES:
        await get(client, world, user, path)
    summary = await get(client, world, user, "summary")
    assert summary["net_worth"]["total"] is None
    assert (summary["health"]["score"], summary["health"]["grade"]) == (None, None)
    assert summary["health"]["reason"]
    assert summary["insights"] == []
    for answer in summary["performance"]:
        nothing = {answer[name] for name in ("start_value", "end_value", "gain", "gain_percent", "twr", "xirr")}
        assert nothing == {None}
        assert set(answer["reasons"]) >= {"gain", "twr", "xirr"}
        assert answer["series"] == []


async def test_only_debts(world: Any, client: Client) -> None:
    user = new_id()
    await world.append(f"user-{user}", linked("bfc", "BFC-1"))
    await world.append(BANK, loan(5_00_000_00, datetime.now(UTC) - timedelta(days=100)))
    await world.deliver()
    summary = await get(client, world, user, "summary")
    assert summary["net_worth"]["total"] == "-500000.00"
    assert summary["net_worth"]["allocation"] == []
    assert summary["health"]["grade"] is None, "no bare F for somebody of whom only a loan is known"
    assert [factor["missing"] for factor in summary["health"]["factors"]] == [True] * 5
    month = summary["performance"][0]
    assert (month["gain"], month["twr"], month["gain_percent"]) == ("0.00", None, None)
    assert set(month["reasons"]) == {"gain_percent", "twr", "xirr"}


async def test_one_account_and_nothing_else(world: Any, client: Client) -> None:
    user = new_id()
    await world.append(f"user-{user}", linked("bfc", "BFC-1"))
    await world.append(f"ledger-{user}", opened(new_id(), "savings", 5_000_00))
    await world.deliver()
    summary = await get(client, world, user, "summary")
    assert summary["net_worth"]["total"] == "5000.00"
    health = {factor["name"]: factor for factor in summary["health"]["factors"]}
    assert health["diversification"]["value"] == "1.00"
    assert health["savings_rate"]["missing"]
    assert health["trading_performance"]["explanation"] == "No trading account is linked."
    assert summary["health"]["confidence"] == 0.2
    assert summary["health"]["grade"] is None, "no bare F for somebody who has just opened an account"
    assert summary["health"]["reason"]


async def test_a_currency_that_no_figure_is_in(world: Any, client: Client) -> None:
    user = new_id()
    await world.append(f"user-{user}", linked("vyomo", "VY-1"))
    await world.append(
        "broker_client-" + str(linked("vyomo", "VY-1").platform_stream.split("-", 1)[1]),
        position(3, 700, position_id="P2", currency="USD"),
    )
    await world.deliver()
    summary = await get(client, world, user, "summary")
    assert summary["net_worth"]["trading"]["open_positions"] is None
    assert summary["net_worth"]["unconverted"] == [{"class": "open_positions", "currency": "USD", "amount": "21.00"}]
    assert summary["net_worth"]["total"] == "0.00"
    assert {answer["end_value"] for answer in summary["performance"]} == {"0.00"}
    explained = await get(client, world, user, "explain/open_positions")
    assert (explained["value"], explained.get("parts", [])) == (None, [])


async def test_insights_are_dismissed_for_good(world: Any, october: Client) -> None:
    life = a_life(2)
    async with world.db.acquire() as connection:
        await fill(connection, list(life_log(life)))
    user = life_user(life.people[0].who.bfc_customer_id)
    stranger = life_user(life.people[1].who.bfc_customer_id)
    first = (await get(october, world, user, "insights"))["items"][0]
    path = f"/api/wealth/insights/{first['id']}/dismiss"
    hidden = await october.post(path, headers=world.bearer(stranger))
    assert (hidden.status_code, hidden.json()["code"]) == (404, "insight_not_found")
    done = await october.post(path, headers=world.bearer(user))
    assert (done.status_code, done.json()["status"]) == (200, "dismissed")
    assert done.headers["X-Consistency-Token"]
    again = await october.post(path, headers=world.bearer(user))
    assert again.status_code == 200
    await deliver(world)
    assert first["id"] not in {item["id"] for item in (await get(october, world, user, "insights"))["items"]}


async def deliver(world: Any) -> None:
    await world.sequence()
    events = await world.store.read_log(0, 1000)
    async with world.db.acquire() as connection, connection.transaction():
        await world._projections.apply(connection, events)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("net-worth?as_of=yesterday", 400, "invalid_request"),
        ("net-worth?as_of=2026-01-01T00:00:00", 400, "invalid_request"),
        ("net-worth?as_of=2999-01-01T00:00:00Z", 400, "invalid_request"),
        ("net-worth?as_of=2999-01-01", 400, "invalid_request"),
        ("net-worth?as_of=0001-01-01", 400, "invalid_request"),
        ("net-worth?as_of=9999-12-31", 400, "invalid_request"),
        ("net-worth?as_of=", 400, "invalid_request"),
        ("net-worth?as_of=2026-02-30", 400, "invalid_request"),
        ("net-worth?as_of=2020-01-01&as_of=2026-01-01", 400, "invalid_request"),
        ("net-worth?as_of=2026-01-01T00:00:00%2B99:00", 400, "invalid_request"),
        ("performance?period=", 400, "invalid_request"),
        ("performance?period=030", 400, "invalid_request"),
        ("performance?period=-30", 400, "invalid_request"),
        ("performance?period=30&period=90", 400, "invalid_request"),
        ("performance?period=" + "9" * 5000, 400, "invalid_request"),
        ("performance?period=31", 400, "invalid_request"),
        ("performance?days=30", 400, "unknown_parameter"),
        ("health?period=30", 400, "unknown_parameter"),
        ("summary?as_of=2026-01-01", 400, "unknown_parameter"),
        ("explain/secrets", 404, "figure_not_found"),
        ("explain/total?limit=0", 400, "invalid_request"),
        ("explain/total?limit=²", 400, "invalid_request"),
        ("explain/total?period=30", 400, "unknown_parameter"),
        ("explain/twr?as_of=2026-01-01", 400, "unknown_parameter"),
    ],
)
async def test_bad_input_is_refused(world: Any, client: Client, path: str, status: int, code: str) -> None:
    assert (await get(client, world, new_id(), path, status))["code"] == code


@pytest.mark.parametrize("path", ROUTES)
async def test_every_route_needs_a_token(client: Client, path: str) -> None:
    assert (await client.get(f"/api/wealth/{path}")).status_code == 401


async def test_erasure_leaves_nothing(world: Any, october: Client) -> None:
    life = a_life(2, months=4)
    log = Log()
    events = list(life_log(life, log))
    gone, other = (life_user(person.who.bfc_customer_id) for person in life.people)
    erasing = log.record(f"user-{gone}", identity.UserErased(user_id=gone, erased_at=NOW), gone)
    posting = log.record(
        f"ledger-{gone}",
        ledger.AccountPosted(
            account_id=new_id(), platform="bfc", legs=(ledger.Leg(account_id=str(new_id()), amount_minor=1,
            currency="INR", balance_after_minor=1),), type="transaction", category="other", item_id="x",
            occurred_at=AT,
        ),
        gone,
    )  # fmt: skip
    late = msgspec.structs.replace(
        next(e for e in events if e.type == "trading.wallet.opened"), position=log.position + 1
    )
    async with world.db.acquire() as connection:
        await fill(connection, events)
        assert (await get(october, world, gone, "summary"))["net_worth"]["total"] is not None
        await fill(connection, [erasing])
        await fill(connection, [posting, late])  # what the law makes the ledger keep posting is not ours to keep
    tables = await world.db.fetch(
        "SELECT table_name FROM information_schema.columns WHERE table_schema = 'public' AND column_name = 'user_id'"
    )
    for table in {row["table_name"] for row in tables} - {"erased"}:
        assert await world.db.fetchval(f"SELECT count(*) FROM {table} WHERE user_id = $1", gone) == 0, table
        if table not in ("noticed", "noticed_changed"):
            assert await world.db.fetchval(f"SELECT count(*) FROM {table} WHERE user_id = $1", other) > 0, table
    assert (await get(october, world, gone, "summary"))["net_worth"]["total"] is None
