"""Net worth as a client gets it, from events alone."""

from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest
from chassis.consistency import HEADER, consistency_token
from events.contracts import banking, identity, ledger, trading
from events.envelope import new_id, platform_stream

pytestmark = pytest.mark.integration

AT = datetime(2026, 2, 12, 9, tzinfo=UTC)
BANK, BROKER = platform_stream("bfc", "BFC-1"), platform_stream("vyomo", "VY-1")
Client = httpx.AsyncClient


def leg(account: object, amount: int, balance: int | None = None) -> ledger.Leg:
    return ledger.Leg(account_id=str(account), amount_minor=amount, currency="INR", balance_after_minor=balance)


def opened(account_id: UUID, kind: Any, balance: int) -> ledger.AccountOpened:
    platform: Any = "vyomo" if kind == "trading_wallet" else "bfc"
    return ledger.AccountOpened(
        account_id=account_id,
        platform=platform,
        platform_account_id=f"{kind}-1",
        kind=kind,
        currency="INR",
        legs=(leg(account_id, balance, balance), leg(f"opening:{platform}", -balance)) if balance else (),
        occurred_at=AT,
    )


def linked(platform: Any, customer_id: str) -> identity.LinkConfirmed:
    return identity.LinkConfirmed(
        link_id=new_id(),
        platform=platform,
        platform_customer_id=customer_id,
        platform_stream=platform_stream(platform, customer_id),
    )


def transfer(source: UUID, target: UUID, amount: int, left: int, there: int) -> ledger.TransferCompleted:
    return ledger.TransferCompleted(
        transfer_id=new_id(),
        from_account_id=source,
        to_account_id=target,
        amount_minor=amount,
        currency="INR",
        legs=(leg(source, -amount, left), leg(target, amount, there)),
        completed_at=AT,
    )


def loan(outstanding: int, at: datetime = AT) -> banking.LoanChanged:
    return banking.LoanChanged(
        item_id=str(new_id()),
        customer_id="BFC-1",
        occurred_at=at,
        loan_id="L1",
        kind="home",
        principal_minor=50_00_000_00,
        outstanding_minor=outstanding,
        emi_minor=40_000_00,
        currency="INR",
        rate_percent="8.5",
    )


def fund(units: str, nav: str) -> banking.FundChanged:
    return banking.FundChanged(
        item_id=str(new_id()),
        customer_id="BFC-1",
        occurred_at=AT,
        scheme_code="S1",
        scheme_name="Index",
        units=units,
        nav=nav,
        cost_minor=1,
        currency="INR",
        as_of=date(2026, 2, 12),
    )


def position(
    quantity: int, mark: int, at: datetime = AT, position_id: str = "P1", currency: str = "INR"
) -> trading.PositionChanged:
    return trading.PositionChanged(
        item_id=str(new_id()),
        customer_id="VY-1",
        occurred_at=at,
        position_id=position_id,
        symbol="NIFTY CALL",
        underlying="NIFTY",
        instrument="option",
        quantity=quantity,
        average_price_minor=1,
        mark_price_minor=mark,
        unrealized_pnl_minor=0,
        currency=currency,
    )


def trade(realized: int | None) -> trading.TradeExecuted:
    return trading.TradeExecuted(
        item_id=str(new_id()),
        customer_id="VY-1",
        occurred_at=AT,
        trade_id=str(new_id()),
        wallet_id="W1",
        symbol="NIFTY CALL",
        underlying="NIFTY",
        instrument="option",
        side="sell",
        quantity=1,
        price_minor=1,
        charges_minor=0,
        currency="INR",
        realized_pnl_minor=realized,
    )


async def net_worth(client: Client, world: Any, user_id: UUID) -> dict[str, Any]:
    response = await client.get("/api/wealth/net-worth", headers=world.bearer(user_id))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_the_whole_shape(world: Any, client: Client) -> None:
    user, savings, wallet, deposit = (new_id() for _ in range(4))
    # Reported before the link: it waits, and counts from the link on.
    await world.append(BANK, loan(1_00_000_00), fund("100.5", "45.67"))
    await world.append(BROKER, position(50, 120_50), trade(4_000_00), trade(None), trade(-1_000_00))
    await world.append(f"user-{user}", linked("bfc", "BFC-1"))
    await world.append(f"user-{user}", linked("vyomo", "VY-1"))
    await world.append(
        f"ledger-{user}",
        opened(savings, "savings", 85_000_00),
        opened(wallet, "trading_wallet", 0),
        opened(deposit, "fixed_deposit", 0),
    )
    last = await world.append(
        f"ledger-{user}",
        transfer(savings, wallet, 50_000_00, 35_000_00, 50_000_00),
        ledger.AccountPosted(
            account_id=savings,
            platform="bfc",
            legs=(leg(savings, -10_000_00, 25_000_00), leg(deposit, 10_000_00, 10_000_00)),
            type="fixed_deposit",
            category="investment",
            item_id="i1",
            occurred_at=AT,
        ),
    )
    await world.deliver()
    response = await client.get("/api/wealth/net-worth", headers=world.bearer(user) | {HEADER: consistency_token(last)})
    found = response.json()
    assert found == {
        "as_of": found["as_of"],
        "position": world.position,
        "currency": "INR",
        "total": "-4385.16",
        "banking": {
            "total": "35000.00",
            "savings": "25000.00",
            "current": "0.00",
            "fixed_deposits": "10000.00",
        },
        "trading": {
            "total": "56025.00",
            "wallet": "50000.00",
            "open_positions": "6025.00",
            "realized_pnl": "3000.00",
        },
        "investments": {"total": "14589.84", "fixed_deposits": "10000.00", "mutual_funds": "4589.84"},
        "liabilities": {"total": "100000.00", "loans": "100000.00"},
        "allocation": [
            {"class": "savings", "amount": "25000.00", "percent": "26.15"},
            {"class": "fixed_deposits", "amount": "10000.00", "percent": "10.46"},
            {"class": "mutual_funds", "amount": "4589.84", "percent": "4.80"},
            {"class": "trading_wallet", "amount": "50000.00", "percent": "52.29"},
            {"class": "open_positions", "amount": "6025.00", "percent": "6.30"},
        ],
    }
    last_event = (await world.store.read_log(world.position - 1))[0]
    assert datetime.fromisoformat(found["as_of"]) == last_event.recorded_at
    await world.live_equals_rebuild()


async def test_before_and_after_the_first_link(world: Any, client: Client) -> None:
    user = new_id()
    nothing = await net_worth(client, world, user)
    assert (nothing["as_of"], nothing["position"]) == (None, 0)
    assert (nothing["total"], nothing["reason"]) == (None, "no linked accounts")
    assert nothing["banking"] == {
        "total": None,
        "savings": None,
        "current": None,
        "fixed_deposits": None,
        "reason": "no linked accounts",
    }
    assert nothing["allocation"] == []
    await world.append(f"user-{user}", linked("bfc", "BFC-1"))
    await world.deliver()
    empty = await net_worth(client, world, user)
    assert (empty["total"], empty["banking"]["total"], empty["liabilities"]["total"]) == ("0.00",) * 3
    assert (empty["trading"]["total"], empty["trading"]["reason"]) == (None, "vyomo not linked")


async def test_late_items_do_not_undo_newer_ones(world: Any, client: Client) -> None:
    user = new_id()
    for platform, customer in (("bfc", "BFC-1"), ("vyomo", "VY-1")):
        await world.append(f"user-{user}", linked(platform, customer))
    await world.append(BANK, loan(200, AT + timedelta(hours=1)))
    await world.append(BROKER, position(0, 0, AT + timedelta(hours=1)))
    await world.deliver()
    await world.append(BANK, loan(300))
    await world.append(BROKER, position(50, 100))
    await world.deliver()
    found = await net_worth(client, world, user)
    assert found["liabilities"]["loans"] == "2.00"
    assert found["trading"]["open_positions"] == "0.00"
    await world.live_equals_rebuild()


async def test_a_foreign_currency_is_listed(world: Any, client: Client) -> None:
    user = new_id()
    await world.append(f"user-{user}", linked("vyomo", "VY-1"))
    await world.append(BROKER, position(2, 100), position(3, 700, position_id="P2", currency="USD"))
    await world.deliver()
    found = await net_worth(client, world, user)
    assert found["trading"]["open_positions"] == found["total"] == "2.00"
    assert found["unconverted"] == [{"class": "open_positions", "currency": "USD", "amount": "21.00"}]


async def test_nobody_sees_another_customers_money(world: Any, client: Client) -> None:
    owner, other, savings = new_id(), new_id(), new_id()
    await world.append(f"user-{owner}", linked("bfc", "BFC-1"))
    await world.append(f"ledger-{owner}", opened(savings, "savings", 100))
    await world.append(BANK, fund("1", "1"))
    await world.deliver()
    assert (await net_worth(client, world, owner))["total"] == "2.00"
    assert (await net_worth(client, world, other))["total"] is None


async def test_a_position_is_called_what_it_was_called_first(world: Any, client: Client) -> None:
    """Whatever else a later statement says of it, and whichever events came in one batch."""
    user = new_id()
    await world.append(f"user-{user}", linked("vyomo", "VY-1"))
    renamed = msgspec.structs.replace(position(3, 100, AT + timedelta(hours=1)), symbol="NIFTY PUT", underlying="BANK")
    await world.append(BROKER, position(2, 100), renamed)
    await world.deliver()
    row = await world.db.fetchrow("SELECT label, underlying, value_minor FROM item")
    assert tuple(row) == ("NIFTY CALL", "NIFTY", 3_00)
    await world.live_equals_rebuild()


@pytest.mark.parametrize("item", [position(10**12, 10**14), fund("999999999999", "999999999999"), loan(10**16)])
async def test_a_value_that_is_nobodys_is_refused(world: Any, item: Any) -> None:
    """Its stream is parked with the reason; sums of values stay exact within 64 bits."""
    user = new_id()
    platform, customer = ("vyomo", "VY-1") if isinstance(item, trading.PositionChanged) else ("bfc", "BFC-1")
    await world.append(f"user-{user}", linked(platform, customer))
    await world.append(platform_stream(platform, customer), item)
    with pytest.raises(ValueError, match="beyond"):
        await world.deliver()


@pytest.mark.parametrize("together", [True, False])
async def test_a_position_does_not_change_its_currency(world: Any, together: bool) -> None:
    user = new_id()
    await world.append(f"user-{user}", linked("vyomo", "VY-1"))
    await world.append(BROKER, position(2, 100))
    if not together:
        await world.deliver()
    await world.append(BROKER, position(2, 100, currency="USD"))
    with pytest.raises(ValueError, match="USD"):
        await world.deliver()


async def test_a_closed_future_is_worth_nothing(world: Any, client: Client) -> None:
    """Its broker may state the last profit once more; that is in the wallet."""
    user = new_id()
    await world.append(f"user-{user}", linked("vyomo", "VY-1"))
    future = msgspec.structs.replace(position(5, 100), instrument="future", unrealized_pnl_minor=9_00)
    await world.append(BROKER, future)
    await world.deliver()
    assert (await net_worth(client, world, user))["total"] == "9.00"
    await world.append(BROKER, msgspec.structs.replace(future, quantity=0, occurred_at=AT + timedelta(days=1)))
    await world.deliver()
    assert (await net_worth(client, world, user))["total"] == "0.00"
    after = await client.get("/api/wealth/net-worth?as_of=2026-02-14", headers=world.bearer(user))
    assert after.json()["total"] == "0.00"
    assert await world.db.fetchval("SELECT value_minor FROM daily ORDER BY day DESC LIMIT 1") == 0


async def test_a_posting_from_before_the_account_was_opened(world: Any, client: Client) -> None:
    user, savings = new_id(), new_id()
    await world.append(f"user-{user}", linked("bfc", "BFC-1"))
    await world.append(f"ledger-{user}", opened(savings, "savings", 100_00))
    await world.deliver()
    early = ledger.AccountPosted(
        account_id=savings, platform="bfc", legs=(leg(savings, -30_00, 70_00),), type="transaction", category="other",
        item_id="early", occurred_at=AT - timedelta(days=40),
    )  # fmt: skip
    await world.append(f"ledger-{user}", early)
    await world.deliver()
    assert (await net_worth(client, world, user))["total"] == "70.00"
    for day, total in (("2025-12-01", "0.00"), ("2026-01-10", "-30.00"), ("2026-02-12", "70.00")):
        then = await client.get(f"/api/wealth/net-worth?as_of={day}", headers=world.bearer(user))
        assert (then.status_code, then.json()["total"]) == (200, total)
    explained = await client.get("/api/wealth/explain/total?as_of=2026-01-10", headers=world.bearer(user))
    assert [event["amount"] for event in explained.json()["parts"][0]["events"]] == ["-30.00"]
    await world.live_equals_rebuild()


async def test_money_on_an_unknown_account_is_refused(world: Any) -> None:
    user = new_id()
    await world.append(f"ledger-{user}", transfer(new_id(), new_id(), 1, 1, 1))
    with pytest.raises(LookupError, match="of 2 accounts"):
        await world.deliver()


@pytest.mark.parametrize("name", ["at", "period"])
async def test_parameters_are_never_ignored(world: Any, client: Client, name: str) -> None:
    response = await client.get(f"/api/wealth/net-worth?{name}=2026-01-01", headers=world.bearer(new_id()))
    assert (response.status_code, response.json()["code"]) == (400, "unknown_parameter")
    assert response.json()["errors"][0]["field"] == name


async def test_needs_a_token(client: Client) -> None:
    response = await client.get("/api/wealth/net-worth")
    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
