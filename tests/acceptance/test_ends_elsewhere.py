"""Ends that a task's own process cannot record: the worker's main process does.

Nothing is found by a poll here: who waits for such a task is told of its end.
"""

import os
import re
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import Signature, chain, chord, group
from celery.exceptions import TaskRevokedError

from aioabort import AbortableAsyncResult, AbortClient, TaskAborted
from tests.support.databases import query
from tests.support.network import Network
from tests.support.waiting import BOUND, until

from .conftest import StartWorker, follow_log
from .harness import Place, Stage, Worker

CONTROLLED: dict[str, Any] = {
    "worker_enable_remote_control": True,
    "aioabort_poll_interval": 3_600.0,
}

HOLD = "SELECT FROM aioabort_request WHERE task_id = %s FOR UPDATE"
HELD_UP = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""

#: Refuses an outcome while the row says something that is to change.
NOT_BEFORE_THE_END = """
    CREATE FUNCTION check_end() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (SELECT status FROM celery_taskmeta WHERE task_id = NEW.task_id)
            NOT IN ('REVOKED', 'ABORTED')
        THEN RAISE EXCEPTION 'settled before the end is stored'; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER check_end BEFORE UPDATE OF outcome ON aioabort_request
    FOR EACH ROW WHEN (NEW.outcome = 'killed') EXECUTE FUNCTION check_end()
"""


@pytest.fixture(scope="session")
def controlled_workers(
    request: pytest.FixtureRequest, start_worker: StartWorker
) -> Callable[[str], Worker]:
    """Workers that can be told to revoke, by their pools and brokers."""

    @cache
    def worker(name: str) -> Worker:
        pool, _, broker = name.partition("-")
        settings = request.getfixturevalue("broker_in_redis") if broker else {}
        return start_worker(pool, **CONTROLLED, **settings)

    return worker


@pytest.fixture(params=["prefork"])
def worker(
    request: pytest.FixtureRequest, controlled_workers: Callable[[str], Worker]
) -> Worker:
    """A prefork worker, unless a test asks for another one."""
    worker = controlled_workers(request.param)
    follow_log(request, worker)
    return worker


async def asked(stage: Stage, seen: str, **options: Any) -> AbortableAsyncResult[Any]:
    """Start a task that is asked to stop, and goes on, *seen* or "unseen"."""
    tasks = stage.tasks.in_pools
    started = (tasks.ignoring,) if seen == "seen" else (tasks.lasting, 60)
    result = await stage.start(*started, **options)
    await result.abort(reason="enough", requested_by="ann")
    if seen == "seen":
        await stage.place.reached("seen")

        async def is_recorded() -> object:
            request = (await result.snapshot()).request
            return request is not None and request.seen_at

        await until(is_recorded)
    return result


as_seen = pytest.mark.parametrize(
    ("seen", "outcome"), [("seen", "failed"), ("unseen", "too_late")]
)


@as_seen
async def test_hard_time_limit(stage: Stage, seen: str, outcome: str) -> None:
    """A task that its pool kills has failed; whether it saw the request is known."""
    result = await asked(stage, seen, time_limit=2)

    with pytest.raises(TimeLimitExceeded):
        await result.wait(BOUND)
    assert (await stage.settled(result)).outcome == outcome
    assert not await result.is_aborted()


async def test_request_class_of_the_users(stage: Stage) -> None:
    """Both do their work: the user's handles the limit, and ours records the end.

    main process: on_failure(), outcome recorded | the client reads it | on_timeout()
    """
    way, looks = "exceed_the_hard_limit", False
    result = await stage.start(stage.tasks.in_ways.noting, way, looks, time_limit=2)
    await result.abort()
    stage.place.open("end")

    with pytest.raises(TimeLimitExceeded):
        await result.wait(BOUND)
    assert (await stage.settled(result)).outcome == "too_late"
    await stage.place.reached("timed out")


@as_seen
async def test_process_that_is_lost(stage: Stage, seen: str, outcome: str) -> None:
    """So has one whose process dies, if it is not to be delivered again."""
    result = await asked(stage, seen)
    os.kill(int(stage.place.lines("body")[0]), signal.SIGKILL)

    with pytest.raises(WorkerLostError):
        await result.wait(BOUND)
    assert (await stage.settled(result)).outcome == outcome


async def test_process_that_is_killed_after_an_end(
    start_worker: StartWorker, place: Place, broker_in_redis: dict[str, Any]
) -> None:
    """What it had not recorded of a task that has ended, the main process does.

    result stored | main process notified | outcome not recorded | killed | no process left

    Where the worker has no event loop, an idle process may hold the lock of the pool's
    queue: killed, it would take that with it.
    """
    settings = broker_in_redis | {"aioabort_poll_interval": 0.2}
    worker = start_worker("prefork", **settings)
    async with AbortClient(worker.app) as client:
        stage = Stage(worker, client, place)
        result = await stage.start(stage.tasks.gated)
        await result.abort()
        with psycopg.connect(worker.dsn) as holder:
            holder.execute(HOLD, [result.id])
            place.open("end")
            done = f"{result.id}] succeeded"
            await until(lambda: done in worker.log.read_text())
            await until(lambda: worker.query(HELD_UP))
            os.kill(int(place.lines("body")[0]), signal.SIGKILL)
            # The server would go on with the statement of a process that is gone.
            query(
                worker.dsn,
                f"SELECT pg_terminate_backend(pid) FROM ({HELD_UP}) AS held",
            )

        assert (await stage.settled(result)).outcome == "too_late"
        assert await result.wait(BOUND) == "done"


async def test_terminated_by_somebody(stage: Stage) -> None:
    """A task that ``revoke(terminate=True)`` ends while it is to stop was killed."""
    result = await asked(stage, "seen")
    stage.worker.app.control.revoke(result.id, terminate=True)

    with pytest.raises(TaskAborted, match="enough"):
        await result.wait(BOUND)
    assert (await stage.settled(result)).outcome == "killed"


@pytest.mark.parametrize("ignores_result", [False, True])
async def test_killed_is_recorded_last(stage: Stage, ignores_result: bool) -> None:
    """When a request is settled as killed, nothing of the task is left to be stored.

    So a waiter finds the end of the task with its first query, and needs no second one.

    killed | REVOKED is stored | the outcome is | waiters are told
    """
    result = await asked(stage, "unseen", ignore_result=ignores_result)
    query(stage.worker.dsn, NOT_BEFORE_THE_END)
    try:
        stage.worker.app.control.revoke(result.id, terminate=True)
        with pytest.raises(TaskAborted, match="enough"):
            await result.wait(BOUND)
        assert (await stage.settled(result)).outcome == "killed"
    finally:
        query(stage.worker.dsn, "DROP FUNCTION check_end CASCADE")


async def test_terminated_without_an_abort(stage: Stage) -> None:
    """Without an abort request the end is Celery's business; its waiters are notified."""
    result = await stage.start(stage.tasks.gated)
    stage.worker.app.control.revoke(result.id, terminate=True)

    with pytest.raises(TaskRevokedError) as raised:
        await result.wait(BOUND)
    assert not isinstance(raised.value, TaskAborted)
    assert (await result.snapshot()).request is None


everywhere = pytest.mark.parametrize(
    "worker", ["prefork", "threads", "solo", "gevent"], indirect=True
)


@everywhere
async def test_task_that_has_expired(stage: Stage) -> None:
    """It has come to its end by that, and its abort was too late for an effect."""
    task_id = str(uuid4())
    await stage.client.abort(task_id, reason="enough")
    result = stage.publish(stage.tasks.once, task_id=task_id, expires=-1)

    assert (await stage.settled(result)).outcome == "too_late"
    with pytest.raises(TaskRevokedError, match="expired"):
        await result.wait(BOUND)
    assert "body" not in stage.place


@everywhere
async def test_task_that_was_revoked_as_well(stage: Stage) -> None:
    """It stops before its body, as its abort has asked for."""
    task_id = str(uuid4())
    await stage.client.abort(task_id, reason="enough")
    stage.worker.app.control.revoke(task_id)
    flagged = f"Tasks flagged as revoked: {task_id}"
    await until(lambda: flagged in stage.worker.log.read_text())
    result = stage.publish(stage.tasks.once, task_id=task_id)

    with pytest.raises(TaskAborted, match="enough"):
        await result.wait(BOUND)
    assert (await stage.settled(result)).outcome == "aborted"
    assert "body" not in stage.place


async def test_what_follows_a_task_that_was_killed(stage: Stage) -> None:
    """Nothing of the chain waits for ever, groups and chords included.

    Closes: Celery stores REVOKED for the task alone when it has killed it.
    """
    run, place = uuid4().hex, str(stage.place.folder)
    passing, gated = stage.tasks.in_endings.passing, stage.tasks.in_endings.gated

    def part(name: str, task: Any = passing) -> Signature:
        signature: Signature = task.si(place, name).set(task_id=f"{run}-{name}")
        return signature

    chain(
        part("a", gated),
        group(part("b"), chord([part("c"), part("d")], part("e"))),
    ).apply_async()
    await stage.place.reached("a")
    await stage.client.abort(f"{run}-a", reason="enough", grace=0)

    for name in "abcde":
        result = stage.client.result(f"{run}-{name}")
        with pytest.raises(TaskAborted, match="enough"):
            await result.wait(BOUND)
        assert name == "a" or name not in stage.place


@pytest.mark.parametrize("worker", ["prefork-redis"], indirect=True)
async def test_main_process_keeps_nothing(stage: Stage) -> None:
    """What it recorded with, a thread and a connection, is gone afterwards.

    It forks children at any time, which would inherit them.
    """
    result = await asked(stage, "unseen")
    before = pids_of_connections(stage)
    stage.worker.app.control.revoke(result.id, terminate=True)
    await stage.settled(result)
    await stage.client.aclose()

    await until(lambda: threads_of(stage.worker) == 1)
    await until(lambda: pids_of_connections(stage) <= before)


def threads_of(worker: Worker) -> int:
    """Return how many threads the main process has."""
    return len([*Path(f"/proc/{worker.process.pid}/task").iterdir()])


def pids_of_connections(stage: Stage) -> set[int]:
    return {connection["pid"] for connection in stage.worker.connections()}


async def test_outage(dsn: str, start_worker: StartWorker, place: Place) -> None:
    """What ends while PostgreSQL is away is recorded when it is back, after one warning.

    asked | cut | killed | not recorded | mended | recorded; the thread ends
    """
    network = Network(dsn)
    await network.mend()
    worker = start_worker("prefork", dsn, aioabort_dsn=network.dsn, **CONTROLLED)
    async with AbortClient(worker.app) as client:
        first = Stage(worker, client, place).scene("first")
        lost = await asked(first, "unseen")
        before = threads_of(worker)
        await network.cut()
        worker.app.control.revoke(lost.id, terminate=True)
        told = "1 tasks are not recorded yet; trying again: PostgreSQL is away"
        await until(lambda: told in worker.log.read_text())

        await network.mend()
        assert (await first.settled(lost)).outcome == "killed"
        await until(lambda: threads_of(worker) == before)
        second = Stage(worker, client, place).scene("second")
        killed = await asked(second, "unseen")
        worker.app.control.revoke(killed.id, terminate=True)
        assert (await second.settled(killed)).outcome == "killed"
        assert worker.log.read_text().count("not recorded yet") == 1
    await network.cut()


@pytest.mark.parametrize(
    ("looks", "outcome"), [(True, "returned"), (False, "too_late")]
)
async def test_child_that_is_recycled_in_an_outage(
    dsn: str, start_worker: StartWorker, place: Place, looks: bool, outcome: str
) -> None:
    """It leaves to the main process what it cannot record, whatever it knows.

    asked, and seen | cut | ends, recycled | mended | recorded
    cut | asked, unknown to the child | ends, recycled | mended | recorded
    """
    network = Network(dsn)
    await network.mend()
    worker = start_worker(
        "prefork",
        dsn,
        aioabort_dsn=network.dsn,
        worker_max_tasks_per_child=1,
        worker_concurrency=1,
    )
    worker.app.conf.aioabort_dsn = dsn
    async with AbortClient(worker.app) as client:
        stage = Stage(worker, client, place)
        result = await stage.start(stage.tasks.in_ways.ending, "return", looks)
        if looks:
            await (await result.abort()).seen(BOUND)
            await network.cut()
        else:
            await network.cut()
            await result.abort()
        place.open("end")

        assert await result.wait(BOUND) == "done"
        told = "1 tasks are not recorded yet; trying again: PostgreSQL is away"
        await until(lambda: told in worker.log.read_text())
        assert (await result.snapshot()).request.outcome is None
        await network.mend()
        assert (await stage.settled(result)).outcome == outcome
    await network.cut()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
async def test_worker_that_ends_in_an_outage(
    dsn: str, start_worker: StartWorker, place: Place, pool: str
) -> None:
    """It does not wait for PostgreSQL, and says that an outcome is lost."""
    network = Network(dsn)
    await network.mend()
    worker = start_worker(pool, dsn, aioabort_dsn=network.dsn, worker_concurrency=1)
    worker.app.conf.aioabort_dsn = dsn
    async with AbortClient(worker.app) as client:
        stage = Stage(worker, client, place)
        looks = True
        result = await stage.start(stage.tasks.in_ways.ending, "return", looks)
        await (await result.abort()).seen(BOUND)
        await network.cut()
        place.open("end")
        assert await result.wait(BOUND) == "done"
        worker.process.terminate()

        await until(lambda: worker.process.poll() is not None)
        log = worker.log.read_text()
        assert re.search("stopped before (all|the) outcomes .*were recorded", log)
