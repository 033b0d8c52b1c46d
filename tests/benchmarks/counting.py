"""How often a worker's process asks PostgreSQL, by its own count."""

from functools import cache
from typing import Any

from aioabort.postgres.connection import SerialConnection


@cache
def count_statements() -> list[str]:
    """Return a list that gets every statement of this process's agents."""
    statements: list[str] = []
    fetch = SerialConnection.fetch

    async def counted(
        self: SerialConnection, query: str, *args: Any, **options: Any
    ) -> Any:
        statements.append(query)
        return await fetch(self, query, *args, **options)

    SerialConnection.fetch = counted  # type: ignore[method-assign]
    return statements
