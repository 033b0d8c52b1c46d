"""How long an abort takes, next to celery.contrib.abortable: python tests/benchmarks/aborting.py.

Starts a PostgreSQL of its own. What is compared is interleaved, so that a noisy machine
is noisy for all.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from aioabort.demo.postgres import throwaway_postgres
from celery import Celery
from celery.contrib.abortable import AbortableAsyncResult

from aioabort import AbortClient

#: Rounds, and how often in a row each gets its turn in a round.
ROUNDS = 20
TURNS = 10
#: Seconds: a web process is asked now and then.
PAUSE = 0.002
BULK = 10_000
BULK_ROUNDS = 5

#: Celery pools its connections only where it believes to be forked by a worker.
POOLED = "contrib, pooled engine"
DEFAULT = "contrib, as in a web process"


async def main(dsn: str) -> None:
    """Measure and print."""
    url = dsn.replace("postgresql://", "db+postgresql+psycopg://", 1)
    apps = {name: make_app(url) for name in (POOLED, DEFAULT)}
    apps[POOLED].backend.session_manager.forked = True
    async with AbortClient(make_app(url)) as client:

        async def ours() -> None:
            await client.abort(str(uuid4()), reason="why", requested_by="alice")

        acts = {"aioabort": ours}
        acts |= {name: contrib(app) for name, app in apps.items()}
        medians = await interleaved(acts)
        for name, median in medians.items():
            ratio = median / medians["aioabort"]
            print(f"{name:30} {median * 1e3:7.2f} ms  {ratio:5.1f}x")
        bulks = [await seconds(lambda: bulk(client)) for _ in range(BULK_ROUNDS)]
        print(f"{BULK:,} ids at once {statistics.median(bulks):17.2f} s")


def make_app(url: str) -> Celery:
    """Return an app that publishes to nobody."""
    return Celery("bench", broker="memory://", backend=url, set_as_current=False)


def contrib(app: Celery) -> Callable[[], Awaitable[None]]:
    """Return what aborts a task by Celery's own means."""

    async def abort() -> None:
        result: Any = AbortableAsyncResult(str(uuid4()), app=app)
        result.abort()

    return abort


async def bulk(client: AbortClient) -> None:
    """Abort many."""
    await client.abort([str(uuid4()) for _ in range(BULK)], reason="tenant deleted")


async def interleaved(
    acts: dict[str, Callable[[], Awaitable[None]]],
) -> dict[str, float]:
    """Return the median seconds of each; they take turns."""
    took: dict[str, list[float]] = {name: [] for name in acts}
    for act in acts.values():
        await act()
    for _ in range(ROUNDS):
        for name, act in acts.items():
            for _ in range(TURNS):
                await asyncio.sleep(PAUSE)
                took[name].append(await seconds(act))
    return {name: statistics.median(each) for name, each in took.items()}


async def seconds(act: Callable[[], Awaitable[None]]) -> float:
    """Return how long *act* took."""
    start = time.perf_counter()
    await act()
    return time.perf_counter() - start


if __name__ == "__main__":
    with throwaway_postgres() as server:
        asyncio.run(main(server.dsn()))
