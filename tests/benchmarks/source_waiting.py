"""Awaiting results of Redis and of django-db: from the commit until the coroutine goes on.

The tasks in Redis are plain ones: Celery's own messages tell of their ends. Those of
django-db are abortable, and the worker's agent tells.
"""

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import redis
from celery import Celery

from aioabort import AbortClient

from .completer import NAME, Completer, completer
from .orm import create_orm_tables, make_orm_app
from .peers import ours
from .place import REDIS, Place, make_app, observer
from .redis_completer import redis_completer
from .waiting import CROWD, FAST, SLOW, Case, ConnectionCounter, Crowd

SUBJECT = "source waiting"

#: A database of Redis that nothing else uses.
DATABASE = 9

URL = "redis://{}:{}/{}".format(*REDIS, DATABASE)

#: One coroutine awaits one task after the other.
ALONE = 1


@dataclass(frozen=True)
class Source:
    """Where the results are, and the process that stores them there."""

    name: str
    app: Celery
    completing: AbstractAsyncContextManager[Completer]
    observed: ConnectionCounter


def measure(place: Place) -> None:
    """Measure it all; results in Redis only if there is one."""
    cases = [Case(CROWD, FAST, place.pick(5, 4))] * place.pick(3, 1)
    cases += [Case(ALONE, SLOW, place.pick(10, 3))]
    for case in cases:
        if place.broker["broker_url"].startswith("redis:"):
            with place.tables() as dsn, _redis_observer() as observed:
                app = make_app(dsn, aioabort_dsn=dsn)
                app.conf.result_backend = URL
                source = Source("redis", app, redis_completer(URL), observed)
                asyncio.run(_wait(place, source, case))
        with place.database() as dsn:
            create_orm_tables(dsn)
            asyncio.run(_wait_for_orm(place, dsn, case))


async def _wait_for_orm(place: Place, dsn: str, case: Case) -> None:
    app = make_orm_app(dsn)
    async with observer(place, dsn) as observed:
        source = Source("django-db", app, completer(dsn, "orm"), observed)
        await _wait(place, source, case)


async def _wait(place: Place, source: Source, case: Case) -> None:
    crowd = Crowd(case)
    async with _open_client(source.app) as client, source.completing as ending:
        await crowd.wait(client.wait, ending, source.observed)
        committed, _ = await ending.ended()
    known = {"source": source.name, "waiters": case.waiters, "rate": case.rate}
    add = partial(place.records.add, SUBJECT, **known)
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


@contextmanager
def _redis_observer() -> Generator["RedisObserver"]:
    """Count the connections to our database of Redis, and empty it afterwards."""
    with redis.Redis.from_url(URL) as connection:
        yield RedisObserver(connection)
        connection.flushdb()


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
