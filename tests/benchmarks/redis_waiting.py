"""Awaiting plain tasks with results in Redis: from the commit until the coroutine goes on."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import redis
from celery import Celery

from aioabort import AbortClient

from .completer import NAME
from .peers import ours
from .place import REDIS, Place, make_app
from .redis_completer import redis_completer
from .waiting import CROWD, FAST, SLOW, Case, Crowd

SUBJECT = "redis waiting"

#: A database of Redis that nothing else uses.
DATABASE = 9

URL = "redis://{}:{}/{}".format(*REDIS, DATABASE)

#: One coroutine awaits one task after the other.
ALONE = 1


def measure(place: Place) -> None:
    """Measure it all, if there is a Redis."""
    if not place.broker["broker_url"].startswith("redis:"):
        print("There is no Redis")
        return
    cases = [Case(CROWD, FAST, place.pick(5, 4))] * place.pick(3, 1)
    cases += [Case(ALONE, SLOW, place.pick(10, 3))]
    with place.tables() as dsn:
        for case in cases:
            asyncio.run(_wait(place, dsn, case))


async def _wait(place: Place, dsn: str, case: Case) -> None:
    app = make_app(dsn, aioabort_dsn=dsn)
    app.conf.result_backend = URL
    crowd = Crowd(case)
    with redis.Redis.from_url(URL) as observer:
        async with redis_completer(URL) as ending, _open_client(app) as client:
            await crowd.wait(client.wait, ending, RedisObserver(observer))
            committed, _ = await ending.ended()
        observer.flushdb()
    add = partial(place.records.add, SUBJECT, waiters=case.waiters, rate=case.rate)
    add("commit to resumed", ours.NOTIFIED, crowd.latencies(committed))
    add("longest stall", ours.NOTIFIED, [crowd.stalls.longest])
    add("longest stall, own work", ours.NOTIFIED, [crowd.stalls.busiest])
    add("connections", ours.NOTIFIED, [crowd.connections], unit="")
    add("cpu", ours.NOTIFIED, [crowd.cpu / crowd.took], unit="cores")


@asynccontextmanager
async def _open_client(app: Celery) -> AsyncGenerator[AbortClient]:
    """Open a client; it listens when the block begins."""
    async with AbortClient(app) as client:
        while client.health().mode != "notify":
            await asyncio.sleep(0.01)
        yield client


class RedisObserver:
    """Counts the connections to our database of Redis."""

    def __init__(self, connection: "redis.Redis") -> None:
        self._connection = connection

    async def connections(self, without: str = NAME) -> int:
        """Return how many there are, *without* those of one name and our own."""
        own = self._connection.client_id()
        return sum(
            each["db"] == str(DATABASE)
            and each["name"] != without
            and each["id"] != str(own)
            for each in self._connection.client_list()
        )
