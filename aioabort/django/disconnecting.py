"""Test databases, which Django cannot copy or drop while a client is connected."""

from typing import Any

from django.db.backends.base.base import NO_DB_ALIAS

from aioabort import sync
from aioabort.worker.agent.agent import stop_agents


def disconnect(connection: Any, **_: object) -> None:
    """Close the connections of this process if Django is about to change databases.

    To create, copy or drop a test database, Django connects without one. The next call
    reads the address anew, and so leads to the database that Django has then.
    """
    if connection.alias == NO_DB_ALIAS:
        sync.close()
        stop_agents()
