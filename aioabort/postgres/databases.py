"""A database that comes and goes, for tests."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from aioabort.dsn import Dsn
from aioabort.postgres import statements
from aioabort.postgres.connection import connect
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.statements import quoted


@asynccontextmanager
async def temporary_database(server: Dsn, name: str) -> AsyncGenerator[None]:
    """Have an empty database *name* on *server*, until the block ends.

    Whoever is still connected to it then loses the connection. Raises StoreError if
    the role may not create one, and StoreUnavailable if there is no server.
    """
    async with connect(server) as link:
        with driver_errors():
            await link.execute(statements.CREATE_DATABASE.format(name=quoted(name)))
        try:
            yield
        finally:
            with driver_errors():
                await link.execute(statements.DROP_DATABASE.format(name=quoted(name)))
