"""A database that comes and goes, for tests."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from aioabort.dsn import Dsn
from aioabort.postgres.connection import connect
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.tables import quoted

# From template1 it would fail while somebody is connected to that.
CREATE_DATABASE: Final = "CREATE DATABASE {name} TEMPLATE template0"

DROP_DATABASE: Final = "DROP DATABASE {name} WITH (FORCE)"


@asynccontextmanager
async def temporary_database(server: Dsn, name: str) -> AsyncGenerator[None]:
    """Have an empty database *name* on *server*, until the block ends.

    Whoever is still connected to it then loses the connection. Raises StoreError if
    the role may not create one, and StoreUnavailable if there is no server.
    """
    async with connect(server) as link:
        with driver_errors():
            await link.execute(CREATE_DATABASE.format(name=quoted(name)))
        try:
            yield
        finally:
            with driver_errors():
                await link.execute(DROP_DATABASE.format(name=quoted(name)))
