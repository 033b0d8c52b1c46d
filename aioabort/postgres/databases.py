"""Temporary databases for tests."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from aioabort.dsn import Dsn
from aioabort.postgres.connection import connect
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.tables import quoted
from aioabort.timing import Timing

# PostgreSQL cannot copy template1 while a session is connected to it.
CREATE_DATABASE: Final = "CREATE DATABASE {name} TEMPLATE template0"

DROP_DATABASE: Final = "DROP DATABASE {name} WITH (FORCE)"


@asynccontextmanager
async def temporary_database(server: Dsn, name: str) -> AsyncGenerator[None]:
    """Create the database *name* on *server*, and drop it at the end of the block.

    Connections that are still open then are closed by PostgreSQL. Raises StoreError if
    the role may not create databases, and StoreUnavailable if PostgreSQL cannot be
    reached.
    """
    async with connect(server, Timing()) as connection:
        with driver_errors():
            await connection.execute(CREATE_DATABASE.format(name=quoted(name)))
        try:
            yield
        finally:
            with driver_errors():
                await connection.execute(DROP_DATABASE.format(name=quoted(name)))
