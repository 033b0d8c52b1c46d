"""The result backend next to Celery's own on PostgreSQL: calls, connections, workers."""

import asyncio
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import asyncpg
from celery import Celery
from celery.utils.nodenames import default_nodename

from .marks import open_board
from .peers import limit
from .place import Place, backend_url
from .workers import Worker, celery_worker

SUBJECT = "backend"

CELERYS = "celery, db+postgresql+psycopg"
OURS = "aioabort+postgresql"
URLS: dict[str, Callable[[str], str]] = {
    CELERYS: backend_url,
    OURS: lambda dsn: f"aioabort+{dsn}",
}

#: Calls in a row, before it is the other's turn.
TURN = 50

#: Seconds that a worker may take for all of its tasks.
BOUND = 120.0

THREADS = 4
#: The pool, and how many tasks it runs at once.
POOLS = {"prefork": 2, "threads": THREADS}

#: Of a database; complete when all its connections are closed.
SESSIONS = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"
COMMIT = """
    INSERT INTO celery_taskmeta (id, task_id, status, result, date_done)
    VALUES (nextval('task_id_sequence'), $1, 'SUCCESS', '1', localtimestamp)
"""
FINISHED = "SELECT count(*) FROM celery_taskmeta WHERE status = 'SUCCESS'"

Times = dict[tuple[str, str], list[float]]


def measure(place: Place) -> None:
    """Measure them in turn, and print the ratios."""
    with ExitStack() as stack:
        dsns = {name: stack.enter_context(place.tables()) for name in URLS}
        for pool in POOLS:
            asyncio.run(_calls(place, dsns, pool))
        for pool in POOLS:
            asyncio.run(_worker(place, dsns, pool))
    _print_ratios(place)


async def _calls(place: Place, dsns: dict[str, str], pool: str) -> None:
    """Measure what a call takes in a process of the pool, and what it connects."""
    before = {name: await _ask(dsn, SESSIONS) for name, dsn in dsns.items()}
    turns = place.pick(20, 5)
    await _limit(place, dsns[OURS], pool)
    times = await asyncio.to_thread(_in_child, dsns, pool, turns)
    await _limit(place, dsns[OURS], pool)
    await asyncio.sleep(0.5)
    for (name, call), values in times.items():
        place.records.add(SUBJECT, call, name, values, pool=pool)
    for name, dsn in dsns.items():
        # Those that ask do not count.
        own = 1 + (name == OURS) * 2
        sessions = await _ask(dsn, SESSIONS) - before[name] - own
        place.records.add(
            *(SUBJECT, "connections a call", name),
            [
                sessions
                / sum(
                    len(values) * TURN
                    for (by, _), values in times.items()
                    if by == name
                )
            ],
            unit="",
            pool=pool,
        )


async def _limit(place: Place, dsn: str, pool: str) -> None:
    """Measure what PostgreSQL and asyncpg take to commit a row, without a backend."""
    connection = await asyncpg.connect(dsn)
    values = []
    for _ in range(TURN):
        start = time.perf_counter()
        await connection.execute(COMMIT, str(uuid4()))
        values.append(time.perf_counter() - start)
    await connection.close()
    measure = "store_result(SUCCESS)"
    place.records.add(SUBJECT, measure, limit.COMMIT, values, pool=pool)


def _in_child(dsns: dict[str, str], pool: str, turns: int) -> Times:
    apps = {
        name: Celery("bench", backend=URLS[name](dsn), set_as_current=False)
        for name, dsn in dsns.items()
    }
    # Celery's own keeps connections open if it was there before the fork, as in a
    # child of a prefork pool; in the main process, as with threads, it does not.
    if pool == "prefork":
        for app in apps.values():
            assert app.backend
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(
        target=lambda: sender.send(_measure_calls(apps, turns, pool))
    )
    child.start()
    times: Times = receiver.recv()
    child.join()
    return times


def _measure_calls(apps: dict[str, Celery], turns: int, pool: str) -> Times:
    """Measure calls one after the other, and as many at once as there are threads."""
    times: Times = {}
    ways: dict[str, Callable[..., Any]] = {"": map}
    with ThreadPoolExecutor(THREADS) as executor:
        if pool == "threads":
            ways[f", {THREADS} at once"] = executor.map
        for turn in range(turns + 1):
            for way, run in ways.items():
                for name, app in apps.items():
                    for call, took in _turn(app.backend, run).items():
                        # In the first turn it connects.
                        if turn:
                            times.setdefault((name, call + way), []).append(took)
    return times


def _turn(backend: Any, run: Callable[..., Any]) -> dict[str, float]:
    """Return the seconds of a call, by its name."""
    ids = [str(uuid4()) for _ in range(TURN)]
    acts = {
        "store_result(STARTED)": lambda id_: backend.store_result(id_, {}, "STARTED"),
        "store_result(SUCCESS)": lambda id_: backend.store_result(id_, 1, "SUCCESS"),
        "get_task_meta()": lambda id_: backend.get_task_meta(id_, cache=False),
    }
    took = {}
    for call, act in acts.items():
        start = time.perf_counter()
        for _ in run(act, ids):
            pass
        took[call] = (time.perf_counter() - start) / TURN
    return took


async def _worker(place: Place, dsns: dict[str, str], pool: str) -> None:
    """Measure how many tasks a second a worker runs that do nothing."""
    tasks = place.pick(1_000, 300)
    for _ in range(place.pick(3, 2)):
        for name, dsn in dsns.items():
            rate = await _rate(place, URLS[name](dsn), dsn, pool, tasks)
            place.records.add(
                *(SUBJECT, "tasks a second", name), [rate], unit="/s", pool=pool
            )


async def _rate(place: Place, url: str, dsn: str, pool: str, tasks: int) -> float:
    async with (
        open_board(place.folder) as board,
        celery_worker(
            *(place, board, dsn, pool, POOLS[pool]),
            result_backend=url,
            task_track_started=True,
        ) as worker,
    ):
        before = await _ask(dsn, FINISHED)
        await asyncio.to_thread(_publish, worker, tasks)
        connection = await asyncpg.connect(dsn)
        start = time.perf_counter()
        await asyncio.to_thread(_consume, worker)
        async with asyncio.timeout(BOUND):
            while await connection.fetchval(FINISHED) < before + tasks:
                await asyncio.sleep(0.02)
        took = time.perf_counter() - start
        await connection.close()
    return tasks / took


def _publish(worker: Worker, tasks: int) -> None:
    """Have the tasks wait in the queue, before the worker takes the first of them."""
    app = worker.app
    queue = app.conf.task_default_queue
    # To this worker only: others at the same broker would take our tasks.
    app.control.cancel_consumer(queue, [default_nodename(queue)], reply=True, timeout=5)
    for _ in range(tasks):
        app.send_task("plain.noop")


def _consume(worker: Worker) -> None:
    app = worker.app
    queue = app.conf.task_default_queue
    app.control.add_consumer(queue, destination=[default_nodename(queue)])


async def _ask(dsn: str, question: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval(question))
    finally:
        await connection.close()


def _print_ratios(place: Place) -> None:
    for ours in place.records.of(SUBJECT):
        if ours.contender != OURS or ours.measure == "connections a call":
            continue
        theirs = place.records.find(SUBJECT, ours.measure, CELERYS, **ours.case)
        assert theirs is not None
        ratio = theirs.p50 / ours.p50 if ours.unit == "s" else ours.p50 / theirs.p50
        print(f"{ours.measure} in {ours.case['pool']}: {ratio:.1f} times as fast")
