"""The driver's errors, made ours: PostgreSQL is away, or PostgreSQL said no."""

from collections.abc import Generator
from contextlib import contextmanager

import asyncpg

from aioabort.exceptions import StoreError, StoreUnavailable

#: A later try may succeed: the server is away, starting, full, or a standby now.
_AWAY = (
    OSError,  # refused, reset, unknown host; TimeoutError is one too
    asyncpg.InterfaceError,  # the connection or the pool is closed
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shut down, starting up
    asyncpg.InsufficientResourcesError,  # too many connections, disk full
    asyncpg.TransactionRollbackError,  # deadlock, serialization
    asyncpg.ReadOnlySQLTransactionError,  # a standby: failover is under way
    asyncpg.TargetServerAttributeNotMatched,
)


@contextmanager
def driver_errors() -> Generator[None]:
    """Raise StoreUnavailable or StoreError for what asyncpg raises inside."""
    try:
        yield
    except asyncpg.ClientConfigurationError as error:
        raise StoreError(f"PostgreSQL cannot be connected to: {error}") from error
    except asyncpg.DataError as error:
        # An InterfaceError, too: the driver could not send a value.
        raise StoreError(f"PostgreSQL refused: {_describe(error)}") from error
    except _AWAY as error:
        raise StoreUnavailable(f"PostgreSQL is away: {_describe(error)}") from error
    except asyncpg.PostgresError as error:
        raise StoreError(f"PostgreSQL refused: {_describe(error)}") from error


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__
