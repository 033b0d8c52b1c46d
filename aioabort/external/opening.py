"""Chooses how the results of an app are read."""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from aioabort.external.blocking_reader import BlockingReader
from aioabort.external.readings import ResultReader
from aioabort.external.redis_reader import RedisReader
from aioabort.external.redis_server import RedisServer, is_redis
from aioabort.timing import Timing

logger: logging.Logger = logging.getLogger(__name__)


def redis_server_of(backend: Any, timing: Timing) -> RedisServer | None:
    """Return the server of a Redis backend; None if Celery's own client must read it."""
    if not is_redis(backend):
        return None
    try:
        return RedisServer(backend, timing)
    except TypeError as error:
        logger.warning(
            "aioabort reads results by Celery's own Redis client, and only polls: an "
            "asyncio connection does not take what result_backend says: %s",
            error,
        )
        return None


@asynccontextmanager
async def open_reader(
    backend: Any, blocking: BlockingReader, timing: Timing
) -> AsyncGenerator[ResultReader]:
    """Yield a reader of Redis for a Redis backend, and *blocking* for any other."""
    server = redis_server_of(backend, timing)
    if server is None:
        yield blocking
        return
    blocking.stop()
    async with server.client() as client:
        yield RedisReader(backend, server, client, timing)
