"""A client that asks ids to stop, one after the other, until it is killed."""

import asyncio
import json
import os
import sys

from celery import Celery

from aioabort import AbortClient


async def main() -> None:
    """Print the id of each request whose receipt says that it was made."""
    app = Celery("client")
    app.conf.update(json.loads(os.environ["AIOABORT_FAULTS_PROJECT"]))
    async with AbortClient(app) as client, asyncio.TaskGroup() as group:
        ids = iter(sys.argv[1:])

        async def work() -> None:
            for task_id in ids:
                receipt = await client.abort(task_id)
                if receipt.is_requested:
                    print(task_id, flush=True)  # noqa: T201 - the suite reads it

        for _ in range(8):
            group.create_task(work())


asyncio.run(main())
