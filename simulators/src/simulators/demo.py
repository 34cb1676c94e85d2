"""The main job as a story: `python -m simulators.demo` (`make demo`), against a running local stack.

Asha links her bank and her broker, moves ₹50,000 from savings to her trading wallet, and sees it
everywhere at once. Talks only HTTP and WebSocket; may be run again and again.
"""

import argparse
import asyncio
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
from rich.console import Console
from rich.panel import Panel
from rich.progress import track
from rich.text import Text

from simulators import scenario, screens
from simulators.http_client import DemoFailed, EventWatch, Frame, JsonClient, Reply, until
from simulators.scenario import Customer, Item, Scenario

SEED = 4025
AMOUNT = "50000.00"
LIVE_EVERY_S = 10
DEFAULT_ENV = Path(__file__).resolve().parents[3] / ".run" / "local.env"
NEEDED = ("ORIGIN_URL", "BFC_URL", "VYOMO_URL", "DEMO_EMAIL", "DEMO_PASSWORD")


def read_env(path: Path) -> dict[str, str]:
    """The settings in an env file of `NAME=value` lines.

    Raises:
        DemoFailed: no such file, or one of `NEEDED` is not in it.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise DemoFailed(f"cannot read {path} ({error.strerror}); is the stack up? Try `make up`") from error
    settings: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            settings[name] = value.strip("\"'")
    missing = [name for name in NEEDED if not settings.get(name)]
    if missing:
        raise DemoFailed(f"{path} lacks {', '.join(missing)}")
    return settings


class Holdings(NamedTuple):
    """The customer's accounts, and the two that the story is about."""

    items: Sequence[Mapping[str, Any]]
    savings: Mapping[str, Any]
    wallet: Mapping[str, Any]


def holdings(customer: Customer, items: Sequence[Mapping[str, Any]]) -> Holdings | None:
    """The customer's accounts once both are there, else None."""
    by_name = {item["platform_account_id"]: item for item in items}
    savings, wallet = by_name.get(customer.savings_account_id), by_name.get(customer.wallet_id)
    return Holdings(items, savings, wallet) if savings and wallet else None


async def feed_trouble(platform: JsonClient) -> str | None:
    """What keeps a platform's items from Sangam, in words; None when nothing does."""
    try:
        health = (await platform.call("GET", "/health/ready")).body
    except DemoFailed as error:
        return str(error)
    troubles = [f"{health[name]} items {name}" for name in ("pending", "rejected") if health[name]]
    troubles += [f"fault {name}" for name, value in health["faults"].items() if value]
    return f"{platform.name}'s feed: {', '.join(troubles)}" if troubles else None


TOP_UP = Decimal("2500.00")
"""What the demo's rule finds missing in the wallet."""


class Story:
    """One run of the demo."""

    def __init__(self, console: Console, settings: Mapping[str, str], session: aiohttp.ClientSession) -> None:
        self._console = console
        self._settings = settings
        self._sangam = JsonClient(session, "Sangam", settings["ORIGIN_URL"])
        self._bfc = JsonClient(session, "BFC", settings["BFC_URL"])
        self._vyomo = JsonClient(session, "Vyomo", settings["VYOMO_URL"])
        self._run = uuid.uuid4().hex[:12]
        self._step = 0

    async def tell(self) -> None:
        """The whole story.

        Raises:
            DemoFailed: with the reason, in words, and what is wrong with the platforms' feeds, if anything.
        """
        try:
            await self._tell()
        except DemoFailed as error:
            troubles = [await feed_trouble(platform) for platform in (self._bfc, self._vyomo)]
            raise DemoFailed("\n".join([str(error), *filter(None, troubles)])) from error

    async def _tell(self) -> None:
        story = await self._platforms_know_the_customer()
        await self._sign_in(story.customer)
        await self._link(story.customer)
        await self._feed(story.fresh)
        await self._accounts_appear(story.customer)
        socket_url = self._settings["ORIGIN_URL"].rstrip("/").replace("http", "ws", 1) + "/ws/sync"
        assert self._sangam.bearer is not None
        async with EventWatch(socket_url, self._sangam.bearer, ["ledger.#"]) as watch:
            before = await self._salary_arrives(story.customer, watch)
            self._console.print(screens.accounts(f"{story.customer.name}'s accounts, before", before.items))
            transfer, frame = await self._move_money(before, watch)
        after = await self._balances_follow(story.customer, before, transfer)
        self._console.print(screens.accounts(f"{story.customer.name}'s accounts, after", after.items))
        await self._other_screens(after, transfer, frame)
        async with EventWatch(socket_url, self._sangam.bearer, ["ledger.rule.#", "customer.#"]) as watch:
            await self._rule_fires(after, watch)
            await self._platforms_disagree(story.customer, watch)
        for platform in (self._bfc, self._vyomo):
            await platform.call("POST", "/control/live", {"every_s": LIVE_EVERY_S})
        self._console.print(
            Panel(
                f"Everything keeps running, with a live item every {LIVE_EVERY_S} s.\n"
                f"API: {self._settings['ORIGIN_URL']} · what runs: `make status` · stop with `make down`",
                title="Done",
                border_style="green",
                expand=False,
            )
        )

    def _say(self, text: str) -> None:
        self._step += 1
        self._console.print(f"[bold cyan]{self._step:>2}[/]  {text}")

    def _note(self, text: str) -> None:
        self._console.print(f"    [dim]{text}[/]")

    async def _platforms_know_the_customer(self) -> Scenario:
        """The customer exists on both platforms and lived there for 90 days; feeds are pushed at once."""
        who = scenario.customer(1)
        self._say(f"{who.name} banks with BFC ({who.bfc_customer_id}), trades with Vyomo ({who.vyomo_client_id})")
        opened: datetime | None = None
        for platform, customer_id in ((self._bfc, who.bfc_customer_id), (self._vyomo, who.vyomo_client_id)):
            await until(
                f"{platform.name} to be ready",
                partial(platform.call, "GET", "/health/ready"),
                lambda _: True,
            )
            # The story needs quiet accounts to add up to the paisa; live items come back at the end.
            await platform.call("POST", "/control/live", {"every_s": 0})
            await platform.call("POST", "/customers", {"customer_id": customer_id, "pin": who.pin})
        told = await self._bfc.call("GET", "/events", params={"customer_id": who.bfc_customer_id, "limit": "1"})
        for item in told.body["items"]:
            opened = datetime.fromisoformat(item["occurred_at"])
        # The same day gives the same items, which a platform that knows them takes as said before.
        as_of = opened + scenario.HISTORY if opened else datetime.now(UTC)
        story = scenario.generate(SEED, who.number, as_of)
        await self._feed(story.backlog)
        return story

    async def _feed(self, items: Sequence[Item]) -> None:
        new = 0
        for item in track(items, "    feeding her life", console=self._console, transient=True):
            body = item.feed_json()
            del body["sequence"]
            platform = self._bfc if item.platform == "bfc" else self._vyomo
            new += (await platform.call("POST", "/events", body, expect=(200, 201))).status == 201
        self._say(f"the platforms report {new} new facts" if new else "the platforms have nothing new to report")
        for platform in (self._bfc, self._vyomo):
            await until(
                f"{platform.name}'s feed to be taken by Sangam",
                partial(platform.call, "GET", "/health/ready"),
                lambda reply: reply.body["pending"] == 0,
            )

    async def _sign_in(self, who: Customer) -> None:
        email, password = self._settings["DEMO_EMAIL"], self._settings["DEMO_PASSWORD"]
        registration = {"email": email, "password": password, "full_name": who.name, "phone": "+919845012345"}
        reply = await until(
            "registration",
            lambda: self._sangam.call("POST", "/api/auth/register", registration, expect=(201, 409)),
            lambda _: True,
        )
        if reply.status == 409 and reply.body.get("code") != "email_taken":
            raise DemoFailed(f"registration refused: {reply.body}")
        self._say("registers with Sangam" if reply.status == 201 else "is registered with Sangam already")
        login = await self._sangam.call(
            "POST", "/api/auth/login", {"email": email, "password": password, "platform": "bfc"}
        )
        self._sangam.bearer = login.body["access_token"]
        self._say("signs in once, on BFC")

    async def _link(self, who: Customer) -> None:
        linked = holdings(who, (await self._list_accounts()).body["items"])
        if linked:
            self._say("BFC and Vyomo are linked already")
            return
        for platform, field, customer_id in (
            ("bfc", "bfc_customer_id", who.bfc_customer_id),
            ("vyomo", "vyomo_client_id", who.vyomo_client_id),
        ):
            simulator = self._bfc if platform == "bfc" else self._vyomo
            route = f"/api/auth/link-{platform}"
            link = (await self._sangam.call("POST", route, {field: customer_id})).body
            approved = await simulator.call(
                "POST",
                f"/customers/{customer_id}/link-assertion",
                {"nonce": link["nonce"], "pin": who.pin},
            )
            confirmation = {"link_id": link["link_id"], "assertion": approved.body["assertion"]}
            await self._sangam.call("POST", f"{route}/confirm", confirmation)
            self._say(f"links {customer_id}: {simulator.name} signed that it is hers")

    async def _list_accounts(self, consistency: str | None = None) -> Reply:
        headers = {"X-Consistency-Token": consistency} if consistency else {}
        return await self._sangam.call("GET", "/api/accounts", headers=headers)

    async def _accounts_appear(self, who: Customer) -> None:
        await until(
            "her savings account and wallet at /api/accounts",
            self._list_accounts,
            lambda reply: holdings(who, reply.body["items"]) is not None,
        )

    async def _salary_arrives(self, who: Customer, watch: EventWatch) -> Holdings:
        """A salary, live, so that ₹50,000 are there on every run. Returns the accounts after it."""
        item = scenario.salary(who, self._run, datetime.now(UTC))
        started = time.perf_counter()
        await self._bfc.call("POST", "/events", item)
        posted = await watch.event(
            f"the salary {item['id']}",
            lambda event: event["type"] == "ledger.account.posted" and event["data"]["item_id"] == item["id"],
        )
        took_ms = (posted.arrived_at - started) * 1000
        self._say(
            f"her salary of {screens.rupees(item['data']['amount'])} is credited at BFC "
            f"and is on her screen after [bold]{took_ms:.0f} ms[/]"
        )
        leg = next(leg for leg in posted.event["data"]["legs"] if leg.get("balance_after_minor") is not None)
        balance = Decimal(leg["balance_after_minor"]) / 100

        def caught_up(reply: Reply) -> bool:
            found = holdings(who, reply.body["items"])
            return found is not None and Decimal(found.savings["balance"]) == balance

        reply = await until("the salary in /api/accounts", self._list_accounts, caught_up)
        found = holdings(who, reply.body["items"])
        assert found is not None
        return found

    async def _move_money(self, before: Holdings, watch: EventWatch) -> tuple[Reply, Frame]:
        body = {
            "from_account_id": before.savings["id"],
            "to_account_id": before.wallet["id"],
            "amount": AMOUNT,
            "currency": "INR",
            "memo": "Margin for NIFTY options",
        }
        key = {"Idempotency-Key": f"demo-{self._run}"}
        self._say(f"moves {screens.rupees(AMOUNT)} from BFC savings to the Vyomo wallet")
        sent_at = time.perf_counter()
        transfer = await self._sangam.call("POST", "/api/transfers", body, headers=key, expect=(201,))
        answered_ms = (time.perf_counter() - sent_at) * 1000
        transfer_id = transfer.body["transfer_id"]
        frame = await watch.event(
            f"the transfer {transfer_id}",
            lambda event: event["type"] == "ledger.transfer.completed" and event["data"]["transfer_id"] == transfer_id,
        )
        took_ms = (frame.arrived_at - sent_at) * 1000
        self._note(f"HTTP 201 after {answered_ms:.1f} ms; /ws/sync delivered this frame:")
        self._console.print_json(data=frame.event)
        self._say(f"command sent → WebSocket frame received: [bold green]{took_ms:.1f} ms[/]")
        again = await self._sangam.call("POST", "/api/transfers", body, headers=key, expect=(200, 201))
        if again.headers.get("Idempotent-Replayed") != "true" or again.body != transfer.body:
            raise DemoFailed(f"the same transfer sent again was not replayed: {again.status} {again.body}")
        self._say("the same request again: [bold]Idempotent-Replayed: true[/], no money moved twice")
        return transfer, frame

    async def _balances_follow(self, who: Customer, before: Holdings, transfer: Reply) -> Holdings:
        """Reads its own write, and checks it to the paisa."""
        token = transfer.headers.get("X-Consistency-Token")
        if token is None:
            raise DemoFailed("POST /api/transfers answered without X-Consistency-Token")
        reply = await until("the accounts after the transfer", lambda: self._list_accounts(token), lambda _: True)
        after = holdings(who, reply.body["items"])
        moved = Decimal(AMOUNT)
        expected = (Decimal(before.savings["balance"]) - moved, Decimal(before.wallet["balance"]) + moved)
        seen = after and (Decimal(after.savings["balance"]), Decimal(after.wallet["balance"]))
        if after is None or seen != expected:
            raise DemoFailed(f"balances after the transfer are {seen}, expected {expected}")
        return after

    async def _other_screens(self, after: Holdings, transfer: Reply, frame: Frame) -> None:
        token = {"X-Consistency-Token": transfer.headers["X-Consistency-Token"]}
        event_id = frame.event["id"]
        wealth = await until(
            "a net worth that agrees with the accounts",
            lambda: self._sangam.call("GET", "/api/wealth/net-worth", headers=token),
            lambda reply: (
                reply.body["banking"]["savings"] == after.savings["balance"]
                and reply.body["trading"]["wallet"] == after.wallet["balance"]
            ),
        )
        self._console.print(screens.net_worth(wealth.body))
        inbox = await until(
            "the transfer among /api/notifications/smart",
            lambda: self._sangam.call("GET", "/api/notifications/smart", headers=token),
            lambda reply: any(event_id in item["event_ids"] for item in reply.body["items"]),
        )
        self._console.print(screens.notifications(inbox.body))
        for query in ("salary", "NIFTY"):
            found = await until(
                f"“{query}” at /api/search",
                partial(self._sangam.call, "GET", "/api/search", headers=token, params={"q": query}),
                lambda reply: reply.body["total"] > 0,
            )
            self._console.print(screens.search(found.body))

    async def _rule_fires(self, before: Holdings, watch: EventWatch) -> None:
        """A rule keeps the wallet filled; it is evaluated when it is made, and fires. Deleted again: it is a demo."""
        target = Decimal(before.wallet["balance"]) + TOP_UP
        rule = {
            "name": "Keep margin in the wallet",
            "source_account_id": before.savings["id"],
            "target_account_id": before.wallet["id"],
            "trigger": {"type": "balance_below", "threshold": f"{target:.2f}"},
            "amount": {"type": "to_target", "target": f"{target:.2f}"},
            "caps": {"per_day": f"{TOP_UP:.2f}"},
        }
        key = {"Idempotency-Key": f"demo-rule-{self._run}"}
        self._say(f"makes a rule: never less than {screens.rupees(str(target))} in the wallet")
        made = await self._sangam.call("POST", "/api/auto-replenish", rule, headers=key, expect=(201,))
        worst = made.body["worst_case"]
        self._note(f"told beforehand: at most {screens.rupees(worst['per_day'])} a day")
        rule_id = made.body["rule_id"]
        frame = await watch.event(
            f"the firing of rule {rule_id}",
            lambda event: event["type"] == "ledger.rule.fired" and event["data"]["rule_id"] == rule_id,
        )
        moved = Decimal(frame.event["data"]["amount_minor"]) / 100
        if moved != TOP_UP:
            raise DemoFailed(f"the rule moved {moved}, not {TOP_UP}")
        self._say(f"the rule fires at once and moves {screens.rupees(str(moved))}, exactly what is missing")
        await self._sangam.call("DELETE", f"/api/auto-replenish/{rule_id}", expect=(200, 204))

    async def _platforms_disagree(self, who: Customer, watch: EventWatch) -> None:
        """Both platforms change the nominee, neither knowing of the other: nobody guesses, she decides."""
        profile = (await self._sangam.call("GET", "/api/sync/profile")).body
        names = (f"Meera Rao {self._run[:4]}", f"Dev Rao {self._run[:4]}")
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        for platform, customer_id, nominee in (
            (self._bfc, who.bfc_customer_id, names[0]),
            (self._vyomo, who.vyomo_client_id, names[1]),
        ):
            edit = {"base_version": profile["version"], "changed_at": now, "fields": {"nominee": nominee}}
            item = {"id": f"demo-profile-{self._run}", "type": "profile.changed", "occurred_at": now}
            await platform.call(
                "POST", "/events", {**item, "customer_id": customer_id, "data": edit}, expect=(200, 201)
            )
        self._say(f"BFC records {names[0]} as her nominee, Vyomo {names[1]}, at the same time")

        def of_today(reply: Reply) -> bool:
            return bool(reply.body["items"]) and reply.body["items"][0]["status"] == "open"

        reply = await until(
            "an open conflict at /api/sync/conflicts",
            lambda: self._sangam.call("GET", "/api/sync/conflicts"),
            of_today,
        )
        conflict = reply.body["items"][0]
        self._note(f"a conflict over {', '.join(decision['field'] for decision in conflict['decisions'])}")
        await self._sangam.call(
            "POST", f"/api/sync/conflicts/{conflict['id']}/resolve", {"strategy": "bfc"}, expect=(200,)
        )
        await until(
            "the resolution in her profile",
            lambda: self._sangam.call("GET", "/api/sync/profile"),
            lambda reply: reply.body["fields"].get("nominee") == names[0],
        )
        self._say(f"she decides for BFC's: her nominee is {names[0]}, and both platforms are told")


async def run(console: Console, env_file: Path) -> None:
    """Tell the story against the stack that `env_file` describes.

    Raises:
        DemoFailed: with the reason, in words.
    """
    settings = read_env(env_file)
    async with aiohttp.ClientSession() as session:
        await Story(console, settings, session).tell()


def main(arguments: Sequence[str]) -> int:
    """The command line; 0 when the story came to its end."""
    parser = argparse.ArgumentParser(prog="python -m simulators.demo", description=__doc__)
    parser.add_argument("--env", type=Path, default=DEFAULT_ENV, help="the stack's local.env")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        asyncio.run(run(console, options.env))
    except (DemoFailed, LookupError) as error:
        # A field that the contract promises is missing: the message is the field's name.
        reason = str(error) if isinstance(error, DemoFailed) else f"an answer lacks {error}"
        Console(stderr=True).print(Panel(Text(reason), title="The demo failed", border_style="red"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
