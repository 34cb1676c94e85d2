"""Conflicts over the real log: both platforms edit, one truth comes out, both are told, and nothing is in the clear."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from events.contracts import identity, ledger
from events.envelope import new_id, platform_stream
from events.store import StreamAppend
from gateway_harness import Gateway, Received, Receiver, status

pytestmark = pytest.mark.integration


class Person:
    """A customer of both platforms, with what their apps send and are told."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.user_id = uuid4()
        self.token = gateway.token(self.user_id)
        self.customers = {platform: f"{platform}-{uuid4().hex[:10]}" for platform in ("bfc", "vyomo")}
        self.sequences = dict.fromkeys(self.customers, 0)

    async def link(self, *platforms: str) -> None:
        async with self.gateway.store("identity") as store:
            for platform in platforms or self.customers:
                customer_id = self.customers[platform]
                event = identity.LinkConfirmed(
                    link_id=uuid4(),
                    platform=platform,  # type: ignore[arg-type]
                    platform_customer_id=customer_id,
                    platform_stream=platform_stream(platform, customer_id),
                )
                await store.append(
                    [StreamAppend(f"user-{self.user_id}", (event,))], event_id=new_id(), subject=self.user_id
                )
        await self.gateway.settled()

    def item(self, platform: str, base_version: int, fields: dict[str, Any], **data: Any) -> dict[str, Any]:
        self.sequences[platform] += 1
        now = datetime.now(UTC).isoformat()
        return {
            "id": f"{platform}-{uuid4()}",
            "sequence": self.sequences[platform],
            "type": "profile.changed",
            "occurred_at": now,
            "customer_id": self.customers[platform],
            "data": {"base_version": base_version, "changed_at": now, "fields": fields, **data},
        }

    async def edit(self, platform: str, base_version: int, **fields: Any) -> str:
        """How the feed answered."""
        answer = await self.gateway.push(platform, [self.item(platform, base_version, fields)])
        await self.gateway.settled()
        (result,) = answer.body["items"]
        assert isinstance(result["status"], str)
        return result["status"]

    async def get(self, path: str) -> Any:
        answer = await self.gateway.get(path, self.token)
        assert answer.status == 200, answer
        return answer.body

    async def post(self, path: str, body: Any = None) -> Any:
        return await self.gateway.call("POST", path, self.token, body)

    def told(self, receiver: Receiver, platform: str) -> list[Received]:
        found = receiver.at(f"/{platform}/webhooks")
        return [message for message in found if message.body["customer_id"] == self.customers[platform]]

    async def until_told(self, receiver: Receiver, version: int) -> None:
        async with asyncio.timeout(15):
            for platform in self.customers:
                while not (told := self.told(receiver, platform)) or told[-1].body["data"]["version"] < version:
                    await asyncio.sleep(0.02)


async def test_a_conflict_is_decided_by_policy_and_both_platforms_are_told(gateway: Gateway) -> None:
    person = Person(gateway)
    await person.link()
    async with Receiver(gateway.receiver_port) as receiver:
        assert await person.edit("bfc", 0, phone="+911", tags=["a"]) == "accepted"
        assert await person.edit("bfc", 1, phone="+912", tags=["a", "b"]) == "accepted"
        assert await person.edit("vyomo", 1, phone="+913", tags=["a", "v"]) == "conflict"
        assert (await person.get("/api/sync/profile"))["fields"] == {"phone": "+912", "tags": ["a", "b", "v"]}
        (conflict,) = (await person.get("/api/sync/conflicts"))["items"]
        assert conflict["status"] == "resolved"
        decided = {decision["field"]: (decision["policy"], decision["winner"]) for decision in conflict["decisions"]}
        assert decided == {"phone": ("authority:bfc", "bfc"), "tags": ("merge", "merged")}
        assert conflict["base"] == {"version": 1, "fields": {"phone": "+911", "tags": ["a"]}}
        assert conflict["vyomo"]["fields"] == {"phone": "+913", "tags": ["a", "v"]}
        assert len(conflict["event_ids"]) == 2
        await person.until_told(receiver, 3)
        for platform in ("bfc", "vyomo"):
            last = person.told(receiver, platform)[-1]
            assert last.body["data"] == {"version": 3, "fields": {"phone": "+912", "tags": ["a", "b", "v"]}}
            last.verify(gateway.announce_secrets[platform])
        # Both report back what they were told: nothing happens.
        assert await person.edit("vyomo", 3, phone="+912") == "accepted"
        answer = await gateway.push("bfc", [person.item("bfc", 3, {"phone": "?"}, origin="sangam")])
        assert answer.status == 200
        await gateway.settled()
        assert (await person.get("/api/sync/profile"))["version"] == 3


async def test_a_person_decides_and_undoes(gateway: Gateway) -> None:
    person, stranger = Person(gateway), Person(gateway)
    await person.link()
    async with Receiver(gateway.receiver_port) as receiver:
        await person.edit("bfc", 0, nominee="X")
        await person.edit("bfc", 1, nominee="B")
        await person.edit("vyomo", 1, nominee="V")
        (conflict,) = (await person.get("/api/sync/conflicts?status=open"))["items"]
        url = f"/api/sync/conflicts/{conflict['id']}"
        assert conflict["decisions"] == [{"field": "nominee", "policy": "manual", "winner": None, "value": None}]
        health = {item["platform"]: item for item in (await person.get("/api/sync/health"))["items"]}
        assert health["vyomo"]["open_conflicts"] >= 1
        refused = await person.post(f"{url}/resolve", {"strategy": "manual"})
        assert (refused.status, refused.body["code"]) == (422, "fields_do_not_match")
        for method, path, body in (("GET", url, None), ("POST", f"{url}/resolve", {"strategy": "bfc"})):
            foreign = await gateway.call(method, path, stranger.token, body)
            assert (foreign.status, foreign.body["code"]) == (404, "conflict_not_found")
        resolved = await person.post(f"{url}/resolve", {"strategy": "vyomo"})
        assert (resolved.status, resolved.body["status"]) == (200, "resolved")
        assert resolved.body["decisions"][0]["winner"] == "vyomo"
        await person.until_told(receiver, 4)
        assert person.told(receiver, "bfc")[-1].body["data"]["fields"] == {"nominee": "V"}
        again = await person.post(f"{url}/resolve", {"strategy": "bfc"})
        assert (again.status, again.body["code"]) == (422, "conflict_not_open")
        reopened = await person.post(f"{url}/reopen")
        assert (reopened.status, reopened.body["status"]) == (200, "open")
        await person.until_told(receiver, 5)
        assert person.told(receiver, "vyomo")[-1].body["data"]["fields"] == {"nominee": "B"}
        given = await person.post(f"{url}/resolve", {"strategy": "manual", "fields": {"nominee": "M"}})
        assert given.body["decisions"][0] == {"field": "nominee", "policy": "manual", "winner": "manual", "value": "M"}


async def test_items_from_before_the_link_wait_and_merge_with_it(gateway: Gateway) -> None:
    person = Person(gateway)
    assert await person.edit("vyomo", 0, phone="+9100", nickname="vy") == "accepted"
    assert (await person.get("/api/sync/profile"))["version"] == 0
    await person.link("bfc")
    await person.edit("bfc", 0, phone="+9111")
    await person.link("vyomo")
    assert (await person.get("/api/sync/profile"))["fields"] == {"nickname": "vy", "phone": "+9111"}


async def test_policies_are_tried_against_the_past_before_they_are_set(gateway: Gateway) -> None:
    person = Person(gateway)
    await person.link()
    await person.edit("bfc", 0, phone="+911")
    await person.edit("bfc", 1, phone="+912")
    await person.edit("vyomo", 1, phone="+913")
    (conflict,) = (await person.get("/api/sync/conflicts"))["items"]
    url, proposal = (
        "/api/sync/conflicts/policies",
        {"items": [{"entity": "profile", "field": "phone", "policy": "authority:vyomo"}]},
    )
    refused = await gateway.call("PUT", url, person.token, proposal)
    assert (refused.status, refused.body["code"]) == (403, "insufficient_scope")
    ops = gateway.ops_token()
    tried = await gateway.call("PUT", f"{url}?dry_run=true", ops, proposal)
    assert tried.status == 200
    mine = [found for found in tried.body["differences"] if found["conflict_id"] == conflict["id"]]
    assert [(found["winner"], found["would_be_winner"]) for found in mine] == [("bfc", "vyomo")]
    assert "+91" not in str(tried.body), "no values of anybody's"
    in_force = {item["field"]: item["policy"] for item in (await person.get(url))["items"]}
    assert in_force["phone"] == "authority:bfc", "a dry run sets nothing"
    assert (await gateway.call("PUT", url, ops, proposal)).status == 200
    try:
        await person.edit("bfc", 3, phone="+914")
        await person.edit("vyomo", 3, phone="+915")
        assert (await person.get("/api/sync/profile"))["fields"]["phone"] == "+915"
    finally:
        assert (await gateway.call("PUT", url, ops, {"items": []})).status == 200


async def test_nothing_personal_is_stored_in_the_clear_and_erasure_forgets(gateway: Gateway) -> None:
    person = Person(gateway)
    await person.link()
    secret = f"secret-{uuid4().hex}"
    async with Receiver(gateway.receiver_port) as receiver:
        await person.edit("bfc", 0, nominee=secret)
        await person.edit("bfc", 1, nominee=f"{secret}-b")
        await person.edit("vyomo", 1, nominee=f"{secret}-v")
        await person.until_told(receiver, 3)
    marks = (secret.encode().hex(), secret)
    for url in (gateway.cell.admin_url(), gateway.cell.admin_url("sync_gateway")):
        connection = await asyncpg.connect(url)
        tables = await connection.fetch(
            "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables"
            " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        for table in tables:
            for row in await connection.fetch(f"SELECT t::text AS row FROM {table['name']} t"):
                assert not any(mark in row["row"] for mark in marks), table["name"]
        await connection.close()
    streams = tuple(platform_stream(platform, customer) for platform, customer in person.customers.items())
    async with gateway.store("identity") as store:
        erased = identity.UserErased(user_id=person.user_id, erased_at=datetime.now(UTC), platform_streams=streams)
        await store.append(
            [StreamAppend(f"user-{person.user_id}", (erased,))], event_id=new_id(), subject=person.user_id
        )
    await gateway.settled()
    connection = await asyncpg.connect(gateway.cell.admin_url("sync_gateway"))
    for holder, column in (
        ("feed", "user_id"), ("conflict", "user_id"), ("announce_link", "user_id"), ("profile_link", "user_id"),
        ("platform_customer", "user_id"), ("webhook_delivery", "user_id"),
    ):  # fmt: skip
        left = await connection.fetchval(f"SELECT count(*) FROM {holder} WHERE {column} = $1", person.user_id)
        assert left == 0, holder
    await connection.close()


# Runs.


def pulled(person: Person, platform: str, count: int) -> list[dict[str, Any]]:
    customer_id = person.customers[platform]
    return [
        {
            "id": f"{customer_id}-{number}",
            "sequence": number,
            "type": "kyc.completed" if platform == "bfc" else "risk.alerted",
            "occurred_at": "2026-02-12T09:00:00Z",
            "customer_id": customer_id,
            "data": {"level": "full"}
            if platform == "bfc"
            else {"alert_id": f"A{number}", "severity": "info", "message": "m"},
        }
        for number in range(1, count + 1)
    ]


async def run_of(person: Person, sync_id: str) -> Any:
    async with asyncio.timeout(20):
        while True:
            answer = await person.gateway.get(f"/api/sync/history/{sync_id}", person.token)
            if answer.status == 200 and answer.body["status"] != "requested":
                return answer.body
            await asyncio.sleep(0.05)


async def test_a_run_pulls_what_never_came_and_the_balances(gateway: Gateway) -> None:
    person = Person(gateway)
    await person.link()
    items = pulled(person, "bfc", 700)
    came = [items[number - 1] for number in (1, 2, 3, 5, 9)]
    await gateway.push("bfc", came)
    await gateway.settled()
    asked: list[dict[str, str]] = []

    def events(query: Any) -> dict[str, Any]:
        asked.append(dict(query))
        after, limit = int(query["after"]), int(query["limit"])
        return {"items": [item for item in items if item["sequence"] > after][:limit]}

    stated = {
        "id": f"balance-{person.customers['bfc']}",
        "type": "balance.stated",
        "occurred_at": "2026-02-12T09:00:00Z",
        "customer_id": person.customers["bfc"],
        "data": {"account_id": "SB-1", "balance": "10.00", "currency": "INR", "as_of": "2026-02-12T09:00:00Z"},
    }
    async with Receiver(gateway.receiver_port) as receiver:
        receiver.pulls["/bfc/events"] = events
        receiver.pulls["/bfc/balances"] = {"items": [stated]}
        requested = await person.post("/api/sync/trigger", {"platform": "bfc"})
        assert requested.status == 202
        run = await run_of(person, requested.body["sync_id"])
        assert (run["status"], run["platform"]) == ("completed", "bfc")
        # From the first gap on: 4 to 700, of which 5 and 9 had come, and one balance.
        assert (run["found"], run["applied"], run["duplicates"]) == (698, 696, 2)
        assert int(asked[0]["after"]) == 3
        # What the ledger asks for runs under the ledger's id, and finds nothing more.
        sync_id = uuid4()
        async with gateway.store("ledger_transfer") as store:
            wanted = ledger.SyncRequested(sync_id=sync_id, platforms=("bfc",), requested_at=datetime.now(UTC))
            await store.append(
                [StreamAppend(f"ledger-{person.user_id}", (wanted,))], event_id=new_id(), subject=person.user_id
            )
        run = await run_of(person, str(sync_id))
        assert (run["found"], run["applied"], run["duplicates"]) == (1, 0, 1)
        listed = (await person.get("/api/sync/history"))["items"]
        assert [item["sync_id"] for item in listed] == [str(sync_id), requested.body["sync_id"]]
        other = gateway.token(uuid4())
        assert (await gateway.get(f"/api/sync/history/{sync_id}", other)).status == 404


async def test_a_platform_that_is_away_fails_its_part_of_a_run_only(gateway: Gateway) -> None:
    person = Person(gateway)
    await person.link()
    async with Receiver(gateway.receiver_port) as receiver:
        receiver.pulls["/vyomo/events"] = {"items": pulled(person, "vyomo", 3)}
        receiver.pulls["/vyomo/balances"] = {"items": []}
        requested = await person.post("/api/sync/trigger")
        assert requested.headers["X-Consistency-Token"]
        run = await run_of(person, requested.body["sync_id"])
        outcomes = {outcome["platform"]: outcome for outcome in run["platforms"]}
        assert run["status"] == "failed"
        assert (outcomes["bfc"]["status"], outcomes["bfc"]["reason"]) == ("failed", "http_503")
        assert (outcomes["vyomo"]["status"], outcomes["vyomo"]["applied"]) == ("completed", 3)
        assert UUID(run["sync_id"])


def _opened(savings: UUID, wallet: UUID) -> list[ledger.AccountOpened]:
    return [
        ledger.AccountOpened(
            account_id=account_id,
            platform=platform,  # type: ignore[arg-type]
            platform_account_id=f"{platform}-account",
            kind=kind,  # type: ignore[arg-type]
            currency="INR",
            occurred_at=datetime.now(UTC),
        )
        for account_id, platform, kind in ((savings, "bfc", "savings"), (wallet, "vyomo", "trading_wallet"))
    ]


def _moved(transfer_id: UUID, savings: UUID, wallet: UUID, amount_minor: int, **more: Any) -> ledger.TransferCompleted:
    """From savings to wallet; a negative amount is the way back."""
    return ledger.TransferCompleted(
        transfer_id=transfer_id,
        from_account_id=savings if amount_minor > 0 else wallet,
        to_account_id=wallet if amount_minor > 0 else savings,
        amount_minor=abs(amount_minor),
        currency="INR",
        legs=(
            ledger.Leg(account_id=str(savings), amount_minor=-amount_minor, currency="INR", platform="bfc"),
            ledger.Leg(account_id=str(wallet), amount_minor=amount_minor, currency="INR", platform="vyomo"),
        ),
        completed_at=datetime.now(UTC),
        **more,
    )


async def test_a_transfer_is_announced_to_the_platforms_it_touches(gateway: Gateway) -> None:
    person = Person(gateway)
    await person.link()
    savings, wallet, transfer_id = uuid4(), uuid4(), uuid4()
    opened = _opened(savings, wallet)
    made = _moved(transfer_id, savings, wallet, 500_00)
    async with Receiver(gateway.receiver_port) as receiver:
        receiver.replies["/vyomo/webhooks"] = status(503)
        async with gateway.store("ledger_transfer") as store:
            await store.append(
                [StreamAppend(f"ledger-{person.user_id}", (*opened, made))], event_id=new_id(), subject=person.user_id
            )
        async with asyncio.timeout(15):
            while not (told := person.told(receiver, "bfc")) or not person.told(receiver, "vyomo"):
                await asyncio.sleep(0.02)
        (message,) = told
        assert message.body["type"] == "transfer.completed"
        assert message.body["data"] == {
            "transfer_id": str(transfer_id),
            "legs": [{"account_id": "bfc-account", "direction": "debit", "amount_minor": 50000, "currency": "INR"}],
        }
        message.verify(gateway.announce_secrets["bfc"])
        async with asyncio.timeout(15):
            while [item["target"] for item in (await person.get("/api/sync/pending"))["items"]] != ["vyomo"]:
                await asyncio.sleep(0.05)
        receiver.replies.clear()
        async with asyncio.timeout(15):
            while (await person.get("/api/sync/pending"))["items"]:
                await asyncio.sleep(0.1)


async def test_a_capture_and_a_reversal_are_announced_once_and_hold_nothing_up(gateway: Gateway) -> None:
    """`transfer.captured` and `.reversed` have no legs: the `transfer.completed` beside each moves the money."""
    person = Person(gateway)
    await person.link()
    savings, wallet, held, back, later = (uuid4() for _ in range(5))
    now = datetime.now(UTC)
    between = {"from_account_id": savings, "to_account_id": wallet, "amount_minor": 300_00, "currency": "INR"}
    events = (
        *_opened(savings, wallet),
        ledger.TransferCaptured(transfer_id=held, released_minor=0, held_at=now, captured_at=now, **between),  # type: ignore[arg-type]
        _moved(held, savings, wallet, 300_00, held=True),
        ledger.TransferReversed(transfer_id=held, reversal_id=back, consumed_at=now, reversed_at=now, **between),  # type: ignore[arg-type]
        _moved(back, savings, wallet, -300_00, reverses=held),
        _moved(later, savings, wallet, 1_00),
    )
    async with Receiver(gateway.receiver_port) as receiver:
        async with gateway.store("ledger_transfer") as store:
            await store.append(
                [StreamAppend(f"ledger-{person.user_id}", events)], event_id=new_id(), subject=person.user_id
            )
        async with asyncio.timeout(15):
            while any(len(person.told(receiver, platform)) < 3 for platform in person.customers):
                await asyncio.sleep(0.02)
        await gateway.settled()
        for platform, sign in (("bfc", -1), ("vyomo", 1)):
            told = [
                (
                    m.body["type"],
                    m.body["data"]["transfer_id"],
                    leg["amount_minor"] * (1 if leg["direction"] == "credit" else -1),
                )
                for m in person.told(receiver, platform)
                for leg in m.body["data"]["legs"]
            ]
            assert told == [
                ("transfer.completed", str(held), sign * 300_00),
                ("transfer.completed", str(back), -sign * 300_00),
                ("transfer.completed", str(later), sign * 1_00),
            ]
    database = await asyncpg.connect(gateway.cell.admin_url("sync_gateway"))
    parked = await database.fetch("SELECT consumer, type, error FROM parked WHERE consumer LIKE '%webhooks%'")
    await database.close()
    assert not parked
