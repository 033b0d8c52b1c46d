"""A process in which tasks end at a steady rate, with their results in Redis.

It stores them as Celery's backend does, and no agent runs: these are plain tasks.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from redis.asyncio import BlockingConnectionPool, Redis

from .completer import CONNECTIONS, NAME, Completer, completing_process
from .place import make_app

EXPIRES = 300


@asynccontextmanager
async def redis_completer(url: str) -> AsyncGenerator[Completer]:
    """Run one for the time of the block."""
    async with completing_process(__spec__.name, url) as ending:
        yield ending


async def run(url: str) -> None:
    """Be that process."""
    pool = BlockingConnectionPool.from_url(
        url, max_connections=CONNECTIONS, client_name=NAME, timeout=None
    )
    app = make_app("postgresql://")
    app.conf.result_backend = url
    backend = app.backend
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    order = json.loads(await asyncio.to_thread(sys.stdin.readline))
    committed: dict[str, float] = {}

    async def complete(task_id: str, due: float) -> None:
        await asyncio.sleep(due - time.monotonic())
        meta = {"status": "SUCCESS", "result": None, "task_id": task_id}
        key, value = backend.get_key_for_task(task_id), backend.encode(meta)
        async with client.pipeline(transaction=True) as pipe:
            pipe.set(key, value, ex=EXPIRES)
            pipe.publish(key, value)
            await pipe.execute()
        committed[task_id] = time.monotonic()

    async with Redis(connection_pool=pool) as client, asyncio.TaskGroup() as group:
        for number, task_id in enumerate(order["ids"]):
            due = order["begins_at"] + number / order["rate"]
            await asyncio.sleep(due - 0.05 - time.monotonic())
            group.create_task(complete(task_id, due))
    await pool.disconnect()
    sys.stdout.write(json.dumps({"committed": committed, "transactions": 0}))


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
