"""asyncpg's errors as ours, and the statements that are repeated."""

from typing import Any

import asyncpg
import pytest

from aioabort.exceptions import StoreBusy, StoreError, StoreUnavailable
from aioabort.postgres import patience
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.patience import fetch_patiently


@pytest.mark.parametrize(
    ("error", "ours", "word"),
    [
        (ConnectionRefusedError("refused"), StoreUnavailable, "away"),
        (TimeoutError(), StoreUnavailable, "away"),
        (asyncpg.InterfaceError("closed"), StoreUnavailable, "away"),
        (asyncpg.ConnectionDoesNotExistError("08003"), StoreUnavailable, "away"),
        (asyncpg.AdminShutdownError("57P01"), StoreUnavailable, "away"),
        (asyncpg.CrashShutdownError("57P02"), StoreUnavailable, "away"),
        (asyncpg.CannotConnectNowError("57P03"), StoreUnavailable, "away"),
        (asyncpg.DatabaseDroppedError("57P04"), StoreUnavailable, "away"),
        (asyncpg.IdleSessionTimeoutError("57P05"), StoreUnavailable, "away"),
        (asyncpg.ReadOnlySQLTransactionError("25006"), StoreUnavailable, "away"),
        (asyncpg.SerializationError("40001"), StoreBusy, "busy"),
        (asyncpg.DeadlockDetectedError("40P01"), StoreBusy, "busy"),
        (asyncpg.LockNotAvailableError("55P03"), StoreBusy, "busy"),
        (asyncpg.QueryCanceledError("57014"), StoreBusy, "busy"),
        (asyncpg.DiskFullError("53100"), StoreBusy, "busy"),
        (asyncpg.TooManyConnectionsError("53300"), StoreBusy, "busy"),
        (asyncpg.InvalidCachedStatementError("0A000"), StoreBusy, "busy"),
        (asyncpg.InsufficientPrivilegeError("42501"), StoreError, "refused"),
        (asyncpg.UndefinedTableError("42P01"), StoreError, "refused"),
        (asyncpg.UntranslatableCharacterError("22P05"), StoreError, "refused"),
        (asyncpg.DataError("invalid input"), StoreError, "refused"),
        (asyncpg.ObjectInUseError("55006"), StoreError, "refused"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_kinds_of_trouble(error: Exception, ours: type[StoreError], word: str) -> None:
    """*Away*, *busy* and *refused*: the class and the message say which."""
    message = rf"^PostgreSQL (is )?{word}: "
    with pytest.raises(StoreError, match=message) as caught, driver_errors():
        raise error
    assert type(caught.value) is ours
    assert caught.value.__cause__ is error


def test_an_error_of_ours_stays() -> None:
    """A full pool is busy, although StoreBusy is an OSError, too."""
    with pytest.raises(StoreBusy, match=r"^no connection is free$"), driver_errors():
        raise StoreBusy("no connection is free")


class Executor:
    """Fails with *errors*, one a call, and then returns no rows."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = [*errors]
        self.calls = 0

    async def fetch(self, query: str, *args: Any, **options: Any) -> list[Any]:
        """Fail or return no rows."""
        self.calls += 1
        assert (query, args, options) == ("SELECT $1", (1,), {"timeout": 3.0})
        if self.errors:
            raise self.errors.pop(0)
        return []

    async def execute(self, query: str, *args: Any) -> str:
        """Not called."""
        raise NotImplementedError


async def fetch(executor: Executor, seconds: float) -> list[Any]:
    return await fetch_patiently(executor, seconds, "SELECT $1", 1, timeout=3.0)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, which take no time in the test."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(patience, "sleep", sleep)
    return pauses


@pytest.mark.parametrize(
    "error", [asyncpg.SerializationError, asyncpg.DeadlockDetectedError]
)
async def test_a_conflict_is_tried_again_at_once(
    pauses: list[float], error: type[Exception]
) -> None:
    """The other transaction is over. A second conflict waits, so that it may end."""
    executor = Executor(error("conflict"), error("conflict"))
    assert await fetch(executor, 60.0) == []
    assert executor.calls == 3
    assert pauses[0] == 0.0
    assert 0.0 < pauses[1] <= patience.FIRST_PAUSE


async def test_a_lock_is_waited_for_between_the_tries(pauses: list[float]) -> None:
    """The pauses grow, up to a longest one."""
    executor = Executor(*[asyncpg.LockNotAvailableError("locked")] * 20)
    assert await fetch(executor, 60.0) == []
    assert 0.0 < pauses[0] <= patience.FIRST_PAUSE
    assert patience.FIRST_PAUSE < max(pauses) <= patience.LONGEST_PAUSE


async def test_patience_has_an_end(pauses: list[float]) -> None:
    """Then the error of the latest try is raised, and says "busy"."""
    executor = Executor(*[asyncpg.LockNotAvailableError("locked")] * 5)
    with pytest.raises(StoreBusy, match=r"^PostgreSQL is busy: locked$"):
        await fetch(executor, 0.0)
    assert (executor.calls, pauses) == (1, [])


@pytest.mark.parametrize(
    "error",
    [StoreBusy("a statement took too long"), ConnectionResetError(), ValueError()],
    ids=lambda error: type(error).__name__,
)
async def test_what_may_have_been_stored_is_not_repeated(
    pauses: list[float], error: Exception
) -> None:
    """Only the server can say that a statement changed nothing."""
    executor = Executor(error)
    with pytest.raises((StoreUnavailable, ValueError)):
        await fetch(executor, 60.0)
    assert (executor.calls, pauses) == (1, [])
