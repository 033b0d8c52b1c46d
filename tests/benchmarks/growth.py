"""What becomes of it when there is more: running tasks, workers, rows."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import asyncpg
import psycopg
from celery.app.task import Context
from psycopg import sql

from aioabort import AbortClient
from aioabort.postgres.notifications import request_channel
from aioabort.postgres.tables import Tables
from aioabort.worker.agent.agent import Agent, agent_for, stop_agents
from aioabort.worker.run import Run

from .counting import count_statements
from .listeners import listeners
from .peers import ours
from .place import Place, make_app, observer

SUBJECT = "growth"

RUNNING = (1, 100, 1_000, 10_000)
WORKERS = (1, 10, 50, 100, 200)
ROWS = (1_000, 100_000, 1_000_000, 10_000_000)
QUICK = {RUNNING: (1, 10_000), WORKERS: (1, 200), ROWS: (1_000, 100_000)}

#: Of our table, in percent of the rows of Celery's.
REQUESTED = 10

#: Seconds for which nothing happens but a poll every 4 to 5.
QUIET = 11
QUICK_QUIET = 6

PAUSE = 0.01


def measure(place: Place) -> None:
    """Measure each growth by itself."""
    for sizes, grow in (
        (RUNNING, _running),
        (WORKERS, _workers),
    ):
        for size in QUICK[sizes] if place.quick else sizes:
            with place.tables() as dsn:
                asyncio.run(grow(place, dsn, size))
    with place.tables() as dsn:
        for rows in QUICK[ROWS] if place.quick else ROWS:
            _fill(dsn, rows)
            asyncio.run(_rows(place, dsn, rows))


async def _running(place: Place, dsn: str, running: int) -> None:
    """Have so many tasks run in one process of a worker."""
    statements = count_statements()
    agent = agent_for(make_app(dsn))
    runs = [_begin(agent) for _ in range(running)]
    await asyncio.to_thread(lambda: [run.first_poll_done.wait(30) for run in runs])
    quiet = place.pick(QUIET, QUICK_QUIET)
    asked, cpu = len(statements), time.process_time()
    await asyncio.sleep(quiet)
    asked, cpu = len(statements) - asked, time.process_time() - cpu

    def add(measure: str, values: list[float], unit: str = "s") -> None:
        place.records.add(
            SUBJECT, measure, ours.NOTIFIED, values, unit=unit, running=running
        )

    add("queries", [asked / quiet], "/s")
    add("cpu", [cpu / quiet], "cores")
    async with observer(place, dsn) as observed:
        add("connections", [await observed.connections()], "")
    async with ours.open_client(dsn) as client:
        # Beside those that go on.
        runs = [_begin(agent) for _ in range(place.pick(60, 20))]
        add("abort to seen", [await _seen(client, run) for run in runs])
    await asyncio.to_thread(stop_agents)


def _begin(agent: Agent) -> Run:
    run = Run(Context(id=str(uuid4()), hostname="bench"), agent)
    agent.watch(run)
    return run


async def _seen(client: AbortClient, run: Run) -> float:
    """Return the seconds from the call of ``abort()`` until the token is set."""
    loop = asyncio.get_running_loop()
    seen = loop.create_future()

    def on_abort() -> None:
        loop.call_soon_threadsafe(seen.set_result, time.monotonic())

    await asyncio.to_thread(run.first_poll_done.wait, 10)
    await asyncio.sleep(PAUSE)
    with run.on_abort(on_abort):
        start = time.monotonic()
        await client.abort(run.task_id)
        return float(await seen) - start


async def _workers(place: Place, dsn: str, workers: int) -> None:
    """Have so many processes listen for requests; one of them runs the task."""
    channel = request_channel(Tables("celery_taskmeta", "public"))
    agent = agent_for(make_app(dsn))
    mouth = await asyncpg.connect(dsn)

    async def notify() -> None:
        await mouth.execute("SELECT pg_notify($1, $2)", channel, f"1:{uuid4()}")

    async with (
        listeners(dsn, channel, workers - 1),
        ours.open_client(dsn) as client,
        observer(place, dsn) as observed,
    ):
        times = [await _seen(client, _begin(agent)) for _ in range(place.pick(60, 20))]
        place.records.add(
            SUBJECT, "abort to seen", ours.NOTIFIED, times, workers=workers
        )
        used = await observed.cpu()
        times = await _times(notify, place.pick(60, 20))
        place.records.add(
            SUBJECT, "a notification", ours.NOTIFIED, times, workers=workers
        )
        if used:
            used = (await observed.cpu() - used) / len(times)
            place.records.add(
                *(SUBJECT, "server CPU per notification", ours.NOTIFIED, [used]),
                workers=workers,
            )
        place.records.add(
            *(SUBJECT, "connections", ours.NOTIFIED, [await observed.connections()]),
            unit="",
            workers=workers,
        )
    await mouth.close()
    await asyncio.to_thread(stop_agents)


async def _rows(place: Place, dsn: str, rows: int) -> None:
    """Have so many rows in Celery's table, and a tenth in ours."""
    with psycopg.connect(dsn) as connection:
        ids = [row[0] for row in connection.execute(SOME_IDS).fetchall()]
    async with ours.open_client(dsn) as client:
        store = client._connections.store
        unknown = [str(uuid4()) for _ in range(1_000)]
        acts: dict[str, Callable[[], Awaitable[object]]] = {
            "abort()": lambda: client.abort(str(uuid4())),
            "query for 1,000 awaited tasks": lambda: store.read_for_waiters(ids, ()),
            "query for 1,000 unknown tasks": lambda: store.read_for_waiters(
                unknown, ()
            ),
            "query for 100 running tasks": lambda: store.read_aborts(ids[:100]),
            "snapshot()": lambda: client.snapshot(ids[0]),
            "the latest 100 requests": lambda: client.requests(limit=100),
        }
        for name, act in acts.items():
            times = await _times(act, place.pick(30, 10))
            place.records.add(SUBJECT, name, ours.NOTIFIED, times, rows=rows)


async def _times(act: Callable[[], Awaitable[object]], number: int) -> list[float]:
    times = []
    await act()
    for _ in range(number):
        await asyncio.sleep(PAUSE)
        start = time.perf_counter()
        await act()
        times.append(time.perf_counter() - start)
    return times


def _fill(dsn: str, rows: int) -> None:
    """Fill both tables up, without their indexes, which are made anew."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute("SET maintenance_work_mem = '512MB'")
        counted = connection.execute("SELECT count(*) FROM celery_taskmeta")
        there = next(row[0] for row in counted)
        keys = connection.execute(KEYS).fetchall()
        for table, name, _ in keys:
            connection.execute(sql.SQL(f"ALTER TABLE {table} DROP CONSTRAINT {name}"))
        connection.execute(FILL, (there + 1, rows))
        connection.execute(FILL_OURS, (max(1, rows // REQUESTED),))
        for table, name, definition in keys:
            connection.execute(
                sql.SQL(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
            )
        connection.execute("VACUUM ANALYZE celery_taskmeta, aioabort_request")
        connection.execute("CHECKPOINT")


#: What makes every insert look for a place in an index of random ids.
KEYS = """
    SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid)
    FROM pg_constraint
    WHERE contype IN ('p', 'u')
        AND conrelid IN ('celery_taskmeta'::regclass, 'aioabort_request'::regclass)
"""

FILL = """
    INSERT INTO celery_taskmeta (id, task_id, status, result, date_done)
    SELECT nextval('task_id_sequence'), gen_random_uuid(), 'SUCCESS', 'null',
        localtimestamp - make_interval(secs => number)
    FROM generate_series(%s::int, %s::int) AS number
"""

FILL_OURS = """
    INSERT INTO aioabort_request
        (task_id, requested_at, expires_at, seen_at, seen_by, outcome, outcome_at)
    SELECT task_id, date_done, now() + interval '1 day', date_done, 'bench',
        'aborted', date_done
    FROM celery_taskmeta
    WHERE task_id NOT IN (SELECT task_id FROM aioabort_request)
    LIMIT greatest(0, %s::int - (SELECT count(*) FROM aioabort_request))
"""

SOME_IDS = "SELECT task_id FROM celery_taskmeta ORDER BY task_id LIMIT 1000"
