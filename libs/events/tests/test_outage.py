"""What is waited for, and what is the event's own fault. Confusing them stops a consumer or parks healthy events."""

import asyncio
from typing import TYPE_CHECKING

import aiormq
import asyncpg
import pytest
from events.outage import is_outage, until_it_works

if TYPE_CHECKING:
    from provision import Cell


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        TimeoutError(),
        asyncpg.AdminShutdownError("x"),
        asyncpg.CannotConnectNowError("x"),
        asyncpg.TooManyConnectionsError("x"),
        asyncpg.DiskFullError("x"),
        asyncpg.InvalidPasswordError("x"),
        asyncpg.QueryCanceledError("x"),
        asyncpg.DeadlockDetectedError("x"),
        asyncpg.SerializationError("x"),
        asyncpg.ReadOnlySQLTransactionError("x"),
        asyncpg.ConnectionDoesNotExistError("x"),
        asyncpg.InterfaceError("connection is closed"),
        aiormq.exceptions.ChannelClosed(None, None),
        aiormq.exceptions.AMQPConnectionError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_outages(error: Exception) -> None:
    assert is_outage(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        KeyError("x"),
        AssertionError("x"),
        asyncpg.UniqueViolationError("x"),
        asyncpg.CheckViolationError("x"),
        asyncpg.NumericValueOutOfRangeError("x"),
        asyncpg.UndefinedTableError("x"),
        asyncpg.InsufficientPrivilegeError("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_faults(error: Exception) -> None:
    assert not is_outage(error)


@pytest.mark.integration
async def test_a_value_that_the_driver_cannot_send_is_a_fault(cell: "Cell") -> None:
    connection = await asyncpg.connect(cell.store_url("wealth"))
    with pytest.raises(Exception, match="out of int64 range") as refused:
        await connection.fetchval("SELECT $1::bigint", 2**80)
    assert not is_outage(refused.value)
    await connection.close()


async def test_waiting_ends_when_it_works_and_at_once_for_a_fault() -> None:
    answers = [ConnectionResetError(), TimeoutError(), "done"]

    async def action() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert await until_it_works("test", action) == "done"
    answers.append(KeyError("x"))
    with pytest.raises(KeyError):
        await asyncio.wait_for(until_it_works("test", action), 1)
