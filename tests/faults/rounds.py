"""A round: a load, a fault in the middle of it, and the audit of every task."""

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from celery import Celery

from aioabort import AbortClient, WaitTimeout
from aioabort.orm import close_connection
from tests.support.databases import query
from tests.support.waiting import until

from .audit import Audit, Fault, audit
from .items import LONGEST_CLEANUP, Item, ItemMaker
from .load import TICK, Load, clock
from .postgres import Postgres, Programs
from .processes import Redis, usage
from .workers import POLL_INTERVAL, Diary, Place, Worker

#: Seconds after a request; a check that finds no abort later, or a body that begins later,
#: is a lost abort. The poll interval and one second are promised; the rest is for busy
#: machines.
LATEST_CHECK = 15.0

#: Seconds without the end of any wait, after the fault, after which the others hang.
#: A worker that was away for long has a queue to work off.
SETTLED = 60.0

#: Seconds after which it is tried again to publish a task.
PUBLISHING = 5.0

#: Injects a fault, holds it for so many seconds, and heals it.
Inject = Callable[[float], Awaitable[None]]

PENDING = """
    SELECT count(*) FROM aioabort_request
    WHERE outcome IS NULL AND task_id = ANY(%s::text[])
"""


#: Requests without their mark in Celery's table, and marks without their request.
HALVES = """
    SELECT count(*)
    FROM celery_taskmeta AS t FULL JOIN aioabort_request AS r USING (task_id)
    WHERE (r.task_id IS NULL AND t.status = 'ABORTED') OR t.task_id IS NULL
"""


FORGET = """
    WITH forgotten AS (
        DELETE FROM aioabort_request WHERE task_id = ANY(%s::text[]) RETURNING task_id
    )
    DELETE FROM celery_taskmeta USING forgotten
    WHERE celery_taskmeta.task_id = forgotten.task_id
"""


@dataclass(frozen=True)
class Size:
    """How much is asked of a round."""

    burst: int
    rate: float
    calm: float
    fault: float
    #: Seconds that tasks clean up, at most.
    cleanup: float
    #: The share of this in a round with results outside of Celery's tables: the full
    #: size asks 5,000 tasks of each source.
    source_share: float


SIZES = {
    "quick": Size(burst=60, rate=25, calm=0.5, fault=1.5, cleanup=1, source_share=0.5),
    "full": Size(
        burst=700,
        rate=30,
        calm=1.5,
        fault=5,
        cleanup=LONGEST_CLEANUP,
        source_share=2.7,
    ),
}


@dataclass
class Arena:
    """What all rounds share: programs, servers, workers, and what is to be reported."""

    folder: Path
    programs: Programs
    postgres: Postgres
    redis: Redis | None
    place: Place
    size: Size
    seed: int
    #: The workers that serve most rounds.
    workers: list[Worker] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    #: The load of the round that is under way.
    load: Load | None = None
    #: What the workers had open after the first round.
    baseline: list[dict[str, int]] = field(default_factory=list)
    #: Lines for the report.
    notes: list[str] = field(default_factory=list)
    #: Lines about what was left behind.
    leaks: list[str] = field(default_factory=list)
    database: str = "faults"

    @property
    def dsn(self) -> str:
        """The database of most rounds."""
        return self.postgres.dsn(self.database)

    @property
    def diary(self) -> Diary:
        """What the tasks have written."""
        return self.place.diary

    def subfolder(self, name: str) -> Path:
        """Return a new folder."""
        folder = self.folder / name
        folder.mkdir()
        return folder

    def app(self, worker: Worker) -> Celery:
        """Return an app that publishes to *worker* and keeps results where it does."""
        app = Celery(worker.name, set_as_current=False)
        app.conf.update(worker.conf)
        if app.conf.broker_url.startswith("redis:"):
            # kombu sets none: to publish while Redis goes away may take for ever.
            options = app.conf.broker_transport_options
            bounded = {"socket_timeout": PUBLISHING}
            app.conf.broker_transport_options = options | bounded
        return app


async def run_round(
    arena: Arena,
    name: str,
    inject: Inject,
    workers: list[Worker] | None = None,
    *,
    dsn: str | None = None,
    client_app: Celery | None = None,
    share: float = 1.0,
    is_local: bool = False,
    is_final: bool = False,
    results_in: Celery | None = None,
    loses_results: bool = False,
    loses_messages: bool = False,
    **tasks: Any,
) -> Audit:
    """Run a round with *workers*, whose results are at *dsn*; fail for any loss.

    The requests are made through *client_app*, or as the first of the workers would.
    *share* of the usual load is what they can take; *tasks* are options of ItemMaker.
    *is_local*: the fault is in the way of a few tasks only. *is_final*: no later run
    replaces what a wait has returned. *results_in*: an app with another result backend.
    *loses_results*: as Celery may, or it stores those of two deliveries of a task.
    *loses_messages*: as the broker may.
    """
    workers = arena.workers if workers is None else workers
    size, start = arena.size, clock()
    queues = [arena.app(worker) for worker in workers]
    async with AbortClient(client_app or queues[0]) as client:
        chance = random.Random(f"{arena.seed} {name}")
        tasks = {"longest_cleanup": size.cleanup} | tasks
        maker = ItemMaker(queues, chance, **tasks)
        burst, rate = round(size.burst * share), size.rate * share
        limit = burst + round(rate * (size.calm + 2 * size.fault))
        load = Load(client, arena.diary, maker, limit)
        arena.load = load
        with anyio.CancelScope() as hanging:
            async with anyio.create_task_group() as group:
                group.start_soon(load.run, burst, rate)
                await anyio.sleep(size.calm)
                begun = clock()
                await inject(size.fault)
                fault = Fault(name, begun, begun if is_local else clock())
                load.limit += round(rate * size.calm)
                await anyio.sleep(size.calm)
                load.stop()
                await _ended(load, hanging)
        if results_in is not None:
            await _ask_receipts(load)
        else:
            await _settled(load, dsn or arena.dsn)
    states = None
    if results_in is not None:
        ids = [item.task_id for item in load.items]
        states = await anyio.to_thread.run_sync(_states, results_in, ids)
    for queue in queues:
        queue.close()
    result = audit(
        load.items,
        arena.diary.read(),
        dsn or arena.dsn,
        fault,
        LATEST_CHECK,
        states=states,
        is_final=is_final,
        loses_results=loses_results,
        loses_messages=loses_messages,
    )
    query(dsn or arena.dsn, FORGET, result.undelivered)
    result.seconds = clock() - start
    result.troubles = load.troubles
    arena.audits.append(result)
    arena.load = None
    arena.baseline = arena.baseline or [usage(w.pid) for w in arena.workers]
    if result.losses:
        logs = (f"{worker.name}:\n{worker.end_of_log}" for worker in workers)
        losses = (f"{len(result.losses)} lost", *result.losses[:20])
        pytest.fail("\n".join([*losses, *logs]))
    return result


async def _ended(load: Load, hanging: anyio.CancelScope) -> None:
    """Wait until every wait has ended; end those that hang."""
    left = len(load.items) + 1
    while left:
        now_left = sum(item.ending is None for item in load.items)
        if now_left < left:
            left = now_left
            hanging.deadline = anyio.current_time() + SETTLED
        await anyio.sleep(TICK)


async def _ask_receipts(load: Load) -> None:
    """Note the outcomes that receipts say.

    A request may be made for a task that has ended, if its result cannot be read: no
    worker settles it, and the receipt derives the outcome from the final state.
    """

    async def ask(item: Item) -> None:
        if item.is_asked and item.receipt is not None:
            with suppress(WaitTimeout):
                item.outcome = await item.receipt.settled(LATEST_CHECK)

    async with anyio.create_task_group() as group:
        for item in load.items:
            group.start_soon(ask, item)


async def _settled(load: Load, dsn: str) -> None:
    """Wait until every request is settled: that is recorded after the end is stored."""
    # Those whose wait hangs are never settled.
    asked = [
        item.task_id for item in load.items if item.is_asked and item.ending is not None
    ]
    try:
        await until(
            lambda: query(dsn, PENDING, asked) == [(0,)],
            5 * POLL_INTERVAL + LATEST_CHECK,
        )
    except TimeoutError:
        return  # the audit tells which


def _states(app: Celery, task_ids: list[str]) -> dict[str, str]:
    try:
        return {task_id: app.backend.get_state(task_id) for task_id in task_ids}
    finally:
        close_connection(app)


async def answers(dsn: str) -> None:
    """Wait until the server at *dsn* takes a connection."""

    def asks() -> bool:
        try:
            query(dsn, "SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    await until(asks)
