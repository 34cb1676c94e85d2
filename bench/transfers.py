"""Transfers with limits on: in process, on one hot account, over HTTP one by one and in bulk.

The ceiling is what PostgreSQL does when a transfer is one call of one PL/pgSQL function that locks both rows, checks
balance and limits, changes both rows, and writes the transfer with its key and its two entries: pgbench, prepared, on
the same server in the same run. The hot account is compared with pgbench on one pair of rows.
"""

import asyncio
import base64
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import aiohttp
import asyncpg
from customers import Customer, make_customer
from events.contracts import banking, trading
from events.envelope import Metadata, new_id
from events.sealing import SubjectKeys
from events.store import EventStore
from events.texts import Texts
from held import held
from ledger_transfer.idempotency import transfer_id_of
from ledger_transfer.ledger import Ledger
from ledger_transfer.state import account_id_of
from ledger_transfer.transfers import Clearance, TransferRequest
from packages import find, require
from recording import recorded
from report import ROUNDS, Figure, Line
from truth import everything_applied

if TYPE_CHECKING:
    from provision import Cell
    from stack import Stack

MASTER_KEY = base64.b64encode(bytes(range(32))).decode()
ACCOUNTS = 1_000
PGBENCH_CLIENTS = 16
PGBENCH_S = 3
AT_ONCE = 512
TRANSFERS = 12_000
HTTP_CUSTOMERS = 32
HTTP_AT_ONCE = 64
HTTP_S = 3
CAUGHT_UP_S = 600
"""Time for the others to make up for what they have missed."""
BULKS_AT_ONCE = 4
BULK_ITEMS = 500
OTHERS = ("identity", "sync_gateway", "wealth", "notifier", "search")

_CLEARANCE = Clearance(threshold_minor=2_00_000_00)
_NOBODY = Metadata(actor="bench")

_SCHEMA = f"""
    CREATE SCHEMA IF NOT EXISTS bench;
    CREATE TABLE bench.account (id int PRIMARY KEY, balance bigint NOT NULL, day date NOT NULL DEFAULT current_date,
                                day_used bigint NOT NULL DEFAULT 0, week_used bigint NOT NULL DEFAULT 0,
                                month_used bigint NOT NULL DEFAULT 0) WITH (fillfactor = 50);
    CREATE TABLE bench.transfer (key uuid PRIMARY KEY, source int, target int, amount bigint,
                                 at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE bench.entry (key uuid NOT NULL, account int NOT NULL, amount bigint NOT NULL);
    INSERT INTO bench.account (id, balance) SELECT n, 1000000000000 FROM generate_series(1, {2 * ACCOUNTS}) n;
    CREATE FUNCTION bench.move(_source int, _target int, _amount bigint) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        left_over bigint;
        key_ uuid := gen_random_uuid();
    BEGIN
        INSERT INTO bench.transfer (key, source, target, amount) VALUES (key_, _source, _target, _amount);
        INSERT INTO bench.entry (key, account, amount) VALUES (key_, _source, -_amount), (key_, _target, _amount);
        -- In the order of the ids, or two transfers the other way round would wait for each other.
        PERFORM FROM bench.account WHERE id IN (_source, _target) ORDER BY id FOR UPDATE;
        UPDATE bench.account SET balance = balance - _amount, day_used = day_used + _amount,
                                 week_used = week_used + _amount, month_used = month_used + _amount
        WHERE id = _source AND balance >= _amount AND day = current_date AND day_used + _amount <= 100000000
              AND week_used + _amount <= 250000000 AND month_used + _amount <= 1000000000
        RETURNING balance INTO left_over;
        IF NOT FOUND THEN RAISE 'insufficient funds'; END IF;
        UPDATE bench.account SET balance = balance + _amount WHERE id = _target;
        RETURN left_over;
    END $$;
"""
_TPS = re.compile(r"tps = ([0-9.]+)")
_REQUESTS = re.compile(r"Requests/sec: +([0-9.]+)")

_BODY = '{"from_account_id":"SOURCE","to_account_id":"TARGET","amount":"0.01","currency":"INR"}'
_BULK_BODY = '{"mode":"all_or_nothing","items":[' + ",".join([_BODY] * BULK_ITEMS) + "]}"
_SCRIPT = """
local callers = {%s}
local key = "%s"
local number = 0
function request()
  number = number + 1
  local caller = callers[number %% #callers + 1]
  local headers = {["Authorization"] = caller[1], ["Content-Type"] = "application/json",
                   ["Idempotency-Key"] = key .. "-" .. number}
  return wrk.format("POST", nil, headers, caller[2])
end
"""
"""What wrk sends."""


async def _pgbench(url: str, *, hot: bool) -> Figure:
    """Transfers per second, median of rounds."""
    postgres = find("postgres")
    assert postgres is not None
    source = "\\set a 1" if hot else f"\\set a random(1, {ACCOUNTS})"
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(f"{source}\nSELECT bench.move(:a, :a + {ACCOUNTS}, 1);\n")
        script.flush()
        command = [
            *(str(postgres.with_name("pgbench")), "-n", "-M", "prepared", "-c", str(PGBENCH_CLIENTS), "-j", "2"),
            *("-T", str(PGBENCH_S), "-f", script.name, url),
        ]
        rounds = []
        for _ in range(ROUNDS):
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
            if (match := _TPS.search(done.stdout)) is None:
                raise RuntimeError(done.stderr)
            rounds.append(float(match[1]))
    return Figure(rounds)


async def _ceilings(cell: "Cell") -> tuple[Figure, Figure]:
    admin = await asyncpg.connect(cell.admin_url())
    await admin.execute(_SCHEMA)
    await admin.close()
    return await _pgbench(cell.admin_url(), hot=False), await _pgbench(cell.admin_url(), hot=True)


async def _open(ledger: Ledger, user_id: UUID) -> None:
    now = datetime.now(UTC)
    bank = banking.AccountOpened(
        item_id="1",
        customer_id="B",
        occurred_at=now,
        account_id="SB1",
        kind="savings",
        currency="INR",
        opening_balance_minor=10**12,
    )
    wallet = trading.WalletOpened(
        item_id="2", customer_id="V", occurred_at=now, wallet_id="W1", currency="INR", opening_balance_minor=0
    )
    for item in (bank, wallet):
        await ledger.record(user_id, recorded(item, at=now))


class _User(NamedTuple):
    user_id: UUID
    savings: UUID
    wallet: UUID


def _user() -> _User:
    user_id = new_id()
    return _User(user_id, account_id_of(user_id, "bfc", "SB1"), account_id_of(user_id, "vyomo", "W1"))


def _request(user: _User, key: str) -> TransferRequest:
    return TransferRequest(
        transfer_id=transfer_id_of(user.user_id, key),
        from_account_id=user.savings,
        to_account_id=user.wallet,
        amount_minor=1,
        currency="INR",
    )


async def _at_once(count: int, workers: int, one: Callable[[int], Awaitable[object]]) -> float:
    """Does `one` for each number, `workers` at a time; per second."""
    numbers = iter(range(count))

    async def work() -> None:
        for n in numbers:
            await one(n)

    started_s = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(workers)))
    return count / (time.perf_counter() - started_s)


async def in_process(cell: "Cell") -> list[Line]:
    """Many customers, then one."""
    usual, hot = await _ceilings(cell)
    store = await EventStore.connect(cell.store_url("ledger_transfer"))
    keys = await SubjectKeys.connect(cell.keys_url("ledger_transfer"), MASTER_KEY)
    ledger = Ledger(store, Texts(keys))
    users = [_user() for _ in range(ACCOUNTS)]
    await asyncio.gather(*(_open(ledger, user.user_id) for user in users))

    def transfer(user: _User, key: str) -> Awaitable[object]:
        return ledger.transfer(user.user_id, _request(user, key), _NOBODY, datetime.now(UTC), _CLEARANCE)

    spread, one = [], []
    for number in range(ROUNDS + 1):  # the first is the warm-up
        spread.append(
            await _at_once(TRANSFERS, AT_ONCE, lambda n, r=number: transfer(users[n % ACCOUNTS], f"{r}-{n}"))  # type: ignore[misc]
        )
        one.append(await _at_once(TRANSFERS, AT_ONCE, lambda n, r=number: transfer(users[0], f"hot-{r}-{n}")))  # type: ignore[misc]
    await store.close()
    await keys.close()
    reference = f"pgbench, one function a transfer, {PGBENCH_CLIENTS} clients"
    return [
        Line("transfers in process, limits on", Figure(spread[1:]), "transfers/s", reference, usual, "≥ 2.5×"),
        Line("the same on one account", Figure(one[1:]), "transfers/s", f"{reference}, one account", hot, "≥ 10×"),
    ]


async def over_http(stack: "Stack") -> list[Line]:
    """Through nginx and the running product: the ledger by itself, and with all six services applying it."""
    require(["wrk"], print)
    usual, _ = await _ceilings(stack.cell)
    async with aiohttp.ClientSession() as http:
        customers = [await make_customer(stack, http) for _ in range(HTTP_CUSTOMERS)]
    reference = f"pgbench, one function a transfer, {PGBENCH_CLIENTS} clients"
    lines = []
    for who, others in (("other services held", OTHERS), ("all six services applying it", ())):
        with held(stack, others):
            one_by_one = await _rate(f"{stack.origin}/api/transfers", _BODY, customers, HTTP_AT_ONCE)
            bulks = await _rate(f"{stack.origin}/api/transfers/bulk", _BULK_BODY, customers, BULKS_AT_ONCE)
        await everything_applied(stack.cell, CAUGHT_UP_S)
        in_bulk = Figure([BULK_ITEMS * per_s for per_s in bulks.rounds])
        lines += [
            Line(f"transfers over HTTP, {who}", one_by_one, "transfers/s", reference, usual, "≥ 0.5×"),
            Line(f"{BULK_ITEMS} a request, {who}", in_bulk, "transfers/s", reference, usual, "≥ 2×"),
        ]
    return lines


async def _rate(url: str, body: str, customers: Sequence[Customer], at_once: int) -> Figure:
    """Requests per second, each with a key of its own. wrk takes as little of the machine as pgbench does."""
    callers = []
    for each in customers:
        content = body.replace("SOURCE", each.savings).replace("TARGET", each.wallet)
        callers.append(f"{{{json.dumps(each.headers['Authorization'])}, [[{content}]]}}")
    rounds = []
    for _ in range(ROUNDS + 1):  # the first is the warm-up
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(_SCRIPT % (",".join(callers), new_id().hex))
            script.flush()
            command = ["wrk", "-t1", f"-c{at_once}", f"-d{HTTP_S}s", "--timeout", "30s", "-s", script.name, url]
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
        if "Non-2xx" in done.stdout or (match := _REQUESTS.search(done.stdout)) is None:
            raise RuntimeError(done.stdout + done.stderr)
        rounds.append(float(match[1]))
    return Figure(rounds[1:])
