"""Awaiting results: from the commit until the coroutine goes on, and what it costs."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any, Protocol
from uuid import uuid4

import anyio
import asyncpg
import psycopg

from .completer import NAME, Completer, completer
from .peers import asking, contrib, limit, ours
from .place import Place, observer
from .stalls import Stalls, stalls

SUBJECT = "waiting"

#: What the project must reach, and everything about it is measured several times.
CROWD, FAST = 10_000, 1_000
SLOW = 100

#: Seconds that a task is awaited before it ends, at the least.
AHEAD = 0.2
#: Seconds after the last commit; who goes on later is counted as having waited so long.
PATIENCE = 8.0
#: Coroutines that begin to wait before the loop does anything else.
CHUNK = 100

WATCHERS = (1, 1_000)

Wait = Callable[[str], Awaitable[Any]]


@dataclass(frozen=True)
class Contender:
    """A way to wait."""

    name: str
    #: How those who wait are told, by the process in which tasks end.
    hints: str
    open: Callable[[str, int], AbstractAsyncContextManager[Wait]]
    most: int = CROWD


CONTENDERS = (
    Contender(ours.NOTIFIED, "agent", ours.notified),
    Contender(ours.POLLED, "none", ours.polled),
    Contender(limit.NAME, "limit", limit.waiting),
    Contender(asking.NAME, "none", asking.polling),
    # More threads than that, or more connections, no server is set up for.
    Contender(
        contrib.GET_POOLED, "none", partial(contrib.getting, pooled=True), most=100
    ),
    Contender(
        contrib.GET_DEFAULT, "none", partial(contrib.getting, pooled=False), most=100
    ),
)


@dataclass(frozen=True)
class Case:
    """The number of waiters, the tasks that end a second, and the seconds."""

    waiters: int
    rate: int
    seconds: int


def measure(place: Place) -> None:
    """Measure it all."""
    full = Case(CROWD, FAST, place.pick(5, 4))
    few = [Case(100, SLOW, 3)]
    if not place.quick:
        few = [Case(CROWD, SLOW, 3)]
        few += [Case(waiters, rate, 3) for waiters in (100, 1) for rate in (FAST, SLOW)]
    with place.tables() as dsn:
        for case in [full] * place.pick(3, 1) + few:
            _have_all_wait(place, dsn, case)
        asyncio.run(_memory(place, dsn))
        for count in WATCHERS:
            asyncio.run(_watchers(place, dsn, count, place.pick(10, 4)))


def _have_all_wait(place: Place, dsn: str, case: Case) -> None:
    """Have every contender wait in turn, each on a table without dead rows."""
    for contender in CONTENDERS:
        if case.waiters <= contender.most:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute("TRUNCATE celery_taskmeta")
                connection.execute("VACUUM ANALYZE celery_taskmeta")
            asyncio.run(_wait(place, dsn, contender, case))


async def _wait(place: Place, dsn: str, contender: Contender, case: Case) -> None:
    async with observer(place, dsn) as observed:
        before = await observed.transactions()
        async with completer(dsn, contender.hints) as ending:
            crowd = Crowd(case)
            async with contender.open(dsn, case.waiters) as wait:
                await crowd.wait(wait, ending, observed)
            committed, of_completer = await ending.ended()
        # A backend that was told to end takes a moment to do so.
        await asyncio.sleep(0.2)
        total = await observed.transactions() - before
    name = contender.name
    add = partial(place.records.add, SUBJECT, waiters=case.waiters, rate=case.rate)
    add("commit to resumed", name, crowd.latencies(committed))
    add("longest stall", name, [crowd.stalls.longest])
    add("longest stall, own work", name, [crowd.stalls.busiest])
    add("connections", name, [crowd.connections], unit="")
    add("cpu", name, [crowd.cpu / crowd.took], unit="cores")
    # To hear a notification is a transaction, too.
    asked = max(0, total - of_completer)
    add("transactions", name, [asked / crowd.took], unit="/s")


class ConnectionCounter(Protocol):
    """Counts the connections of the waiting clients."""

    async def connections(self, without: str) -> int:
        """Return how many there are, *without* those of one application."""
        ...


class Crowd:
    """Those who wait, for tasks that end at a rate."""

    def __init__(self, case: Case) -> None:
        self._waiters = case.waiters
        self._rate = case.rate
        self._ids = [str(uuid4()) for _ in range(case.rate * case.seconds)]
        self._next = 0
        self._joined: dict[str, None] = {}
        self._resumed: dict[str, float] = {}
        self.stalls = Stalls()
        self.connections = 0
        self.cpu = 0.0
        self.took = 0.0

    async def wait(
        self, wait: Wait, ending: Completer, observed: ConnectionCounter
    ) -> None:
        """Wait, until all is over."""
        # What was there before is not looked through again and again, as in a server
        # that does this after its start.
        gc.collect()
        gc.freeze()
        start, cpu = time.monotonic(), time.process_time()
        async with stalls() as self.stalls:
            fixed = self._waiters >= len(self._ids)
            tasks = await self._join(wait) if fixed else []
            await ending.begin(self._ids, self._rate)
            if not fixed:
                tasks = [
                    asyncio.create_task(self._follow(wait, ending.begins_at))
                    for _ in range(self._waiters)
                ]
            await asyncio.sleep(len(self._ids) / self._rate / 2)
            self.connections = await observed.connections(without=NAME)
            await self._finish(tasks, ending.begins_at + len(self._ids) / self._rate)
        self.took, self.cpu = time.monotonic() - start, time.process_time() - cpu
        await _cancel(tasks)
        gc.unfreeze()

    def latencies(self, committed: dict[str, float]) -> list[float]:
        """Return the seconds from each commit to the coroutine that awaited it."""
        now = time.monotonic()
        return [
            max(0.0, self._resumed.get(task_id, now) - committed[task_id])
            for task_id in self._joined
            if task_id in committed
        ]

    async def _join(self, wait: Wait) -> list[asyncio.Task[None]]:
        rest = [str(uuid4()) for _ in range(self._waiters - len(self._ids))]
        tasks = []
        for number, task_id in enumerate([*self._ids, *rest], 1):
            tasks.append(asyncio.create_task(self._one(wait, task_id)))
            if not number % CHUNK:
                await asyncio.sleep(0.001)
        return tasks

    async def _one(self, wait: Wait, task_id: str) -> None:
        self._joined[task_id] = None
        await wait(task_id)
        self._resumed[task_id] = time.monotonic()

    async def _follow(self, wait: Wait, begins_at: float) -> None:
        """Wait for one task after the other, of those that will end soon."""
        while True:
            soon = ceil((time.monotonic() + AHEAD - begins_at) * self._rate)
            number = max(self._next, soon)
            self._next = number + 1
            if number >= len(self._ids):
                return
            await self._one(wait, self._ids[number])

    async def _finish(self, tasks: list[asyncio.Task[None]], last_end: float) -> None:
        await asyncio.sleep(last_end - time.monotonic())
        if len(self._joined) > len(self._ids):
            # Some wait for what does not end.
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                if len(self._resumed) == len(self._ids):
                    return
                await asyncio.sleep(0.05)
        else:
            await asyncio.wait(tasks, timeout=PATIENCE)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for number, task in enumerate(tasks, 1):
        task.cancel()
        if not number % CHUNK:
            await asyncio.sleep(0)
    if tasks:
        await asyncio.wait(tasks, timeout=PATIENCE)


async def _memory(place: Place, dsn: str) -> None:
    """Measure what a waiter takes: its task, its coroutines, and what we keep of it."""
    ids = [str(uuid4()) for _ in range(CROWD)]
    async with ours.open_client(dsn) as client:
        await _cancel([asyncio.create_task(client.wait(ids[0]))])
        gc.collect()
        tracemalloc.start()
        tasks = [asyncio.create_task(client.wait(task_id)) for task_id in ids]
        while client.health().waiters < CROWD:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        gc.collect()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        place.records.add(
            *(SUBJECT, "memory of a waiter", ours.NOTIFIED, [size / CROWD]),
            unit="B",
            waiters=CROWD,
        )
        await _cancel(tasks)


async def _watchers(place: Place, dsn: str, count: int, seconds: int) -> None:
    """Measure what PostgreSQL is asked when *count* coroutines follow the progress."""
    task_id = str(uuid4())
    seen = [0] * count
    async with observer(place, dsn) as observed, asyncio.timeout(60):
        before = await observed.transactions()
        progress = await asyncpg.connect(dsn)
        async with ours.open_client(dsn) as client:
            watchers = [
                asyncio.create_task(_watch(client.watch(task_id), seen, number))
                for number in range(count)
            ]
            start = time.monotonic()
            steps = seconds * 4
            for step in range(steps):
                await progress.execute(PROGRESS, task_id, f"STEP{step}")
                await anyio.sleep_until(
                    anyio.current_time() + start + (step + 1) / 4 - time.monotonic()
                )
            took = time.monotonic() - start
            await _cancel(watchers)
        await progress.close()
        await asyncio.sleep(0.2)
        asked = await observed.transactions() - before - steps
    add = partial(place.records.add, SUBJECT, watchers=count)
    add("queries of watchers", ours.NOTIFIED, [asked / took], unit="/s")
    add(
        "changes seen by a watcher",
        ours.NOTIFIED,
        [sum(seen) / count / took],
        unit="/s",
    )


PROGRESS = """
    -- $1 task id, $2 state
    INSERT INTO celery_taskmeta (id, task_id, status)
    VALUES (nextval('task_id_sequence'), $1, $2)
    ON CONFLICT (task_id) DO UPDATE SET status = $2
"""


async def _watch(snapshots: AsyncGenerator[Any], seen: list[int], number: int) -> None:
    with suppress(asyncio.CancelledError):
        async for _ in snapshots:
            seen[number] += 1
