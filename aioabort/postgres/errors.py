"""asyncpg's errors as ours: PostgreSQL is away, is busy, or refuses a statement."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import asyncpg

from aioabort.exceptions import StoreBusy, StoreError, StoreUnavailable

#: The server rolled the statement back. The same statement may succeed soon.
_BUSY: Final = (
    asyncpg.TransactionRollbackError,  # serialization failure, deadlock
    asyncpg.LockNotAvailableError,  # lock_timeout
    asyncpg.QueryCanceledError,  # statement_timeout, or an administrator
    asyncpg.InsufficientResourcesError,  # too many connections, disk full
    asyncpg.InvalidCachedStatementError,  # a table was altered
)

#: There is no usable connection. A later one may be usable.
_AWAY: Final = (
    OSError,  # refused, reset, unknown host; includes TimeoutError
    asyncpg.InterfaceError,  # the connection or the pool is closed
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutting down, starting up, idle for too long
    asyncpg.TransactionTimeoutError,  # closes the connection
    asyncpg.ReadOnlySQLTransactionError,  # a standby: a failover is under way
    asyncpg.TargetServerAttributeNotMatched,
)


@contextmanager
def driver_errors() -> Generator[None]:
    """Raise StoreBusy, StoreUnavailable or StoreError for an error of asyncpg."""
    try:
        yield
    except StoreError:
        raise
    except asyncpg.ClientConfigurationError as error:
        raise StoreError(
            f"asyncpg cannot use the address of PostgreSQL: {error}"
        ) from error
    except asyncpg.DataError as error:
        # asyncpg could not encode a value. This error is an InterfaceError, too, but
        # a later try would fail as well.
        raise StoreError(f"PostgreSQL refused: {_describe(error)}") from error
    except _BUSY as error:
        raise StoreBusy(f"PostgreSQL is busy: {_describe(error)}") from error
    except _AWAY as error:
        raise StoreUnavailable(f"PostgreSQL is away: {_describe(error)}") from error
    except asyncpg.PostgresError as error:
        raise StoreError(f"PostgreSQL refused: {_describe(error)}") from error


def was_rolled_back(error: StoreBusy) -> bool:
    """Whether the server itself reported the error, so the statement changed nothing."""
    return isinstance(error.__cause__, _BUSY)


def was_in_conflict(error: StoreBusy) -> bool:
    """Whether another transaction, which is over, was in the way."""
    return isinstance(error.__cause__, asyncpg.TransactionRollbackError)


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__
