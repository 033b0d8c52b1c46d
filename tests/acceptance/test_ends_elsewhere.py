"""Ends that a task's own process cannot record: the worker's main process does.

Nothing is found by a poll here: who waits for such a task is told of its end.
"""

import os
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
from tests.integration.conftest import Network

from .conftest import StartWorker, follow_log
from .harness import BOUND, Place, Stage, Worker, becomes_true, execute, first_true

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

        await first_true(is_recorded)
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


@as_seen
async def test_process_that_is_lost(stage: Stage, seen: str, outcome: str) -> None:
    """So has one whose process dies, if it is not to be delivered again."""
    result = await asked(stage, seen)
    os.kill(int(stage.place.lines("body")[0]), signal.SIGKILL)

    with pytest.raises(WorkerLostError):
        await result.wait(BOUND)
    assert (await stage.settled(result)).outcome == outcome


async def test_process_that_is_killed_after_an_end(stage: Stage) -> None:
    """What it had not recorded of a task that has ended, the main process does.

    result stored | main process told | outcome not recorded | killed | nobody left
    """
    result = await stage.start(stage.tasks.gated)
    await result.abort()
    with psycopg.connect(stage.worker.dsn) as holder:
        holder.execute(HOLD, [result.id])
        stage.place.open("end")
        done = f"{result.id}] succeeded"
        await becomes_true(lambda: done in stage.worker.log.read_text())
        await becomes_true(lambda: stage.worker.query(HELD_UP))
        os.kill(int(stage.place.lines("body")[0]), signal.SIGKILL)
        # The server would go on with the statement of a process that is gone.
        execute(
            stage.worker.dsn,
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

    So whoever awaits the task finds its end at the first look, and needs no second one.

    killed | REVOKED is stored | the outcome is | waiters are told
    """
    result = await asked(stage, "unseen", ignore_result=ignores_result)
    execute(stage.worker.dsn, NOT_BEFORE_THE_END)
    try:
        stage.worker.app.control.revoke(result.id, terminate=True)
        with pytest.raises(TaskAborted, match="enough"):
            await result.wait(BOUND)
        assert (await stage.settled(result)).outcome == "killed"
    finally:
        execute(stage.worker.dsn, "DROP FUNCTION check_end CASCADE")


async def test_terminated_without_an_abort(stage: Stage) -> None:
    """One that nobody had asked to stop is Celery's business; its waiters are told."""
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
    await becomes_true(lambda: flagged in stage.worker.log.read_text())
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

    threads = Path(f"/proc/{stage.worker.process.pid}/task")
    await becomes_true(lambda: len([*threads.iterdir()]) == 1)
    await becomes_true(lambda: pids_of_connections(stage) <= before)


def pids_of_connections(stage: Stage) -> set[int]:
    return {connection["pid"] for connection in stage.worker.connections()}


async def test_outage(dsn: str, start_worker: StartWorker, place: Place) -> None:
    """While PostgreSQL is away, a killed task costs one warning and nothing else.

    cut | killed | not recorded | mended | the next killed task is recorded
    """
    network = Network(dsn)
    await network.mend()
    worker = start_worker("prefork", dsn, aioabort_dsn=network.dsn, **CONTROLLED)
    async with AbortClient(worker.app) as client:
        first = Stage(worker, client, place).scene("first")
        lost = await first.start(first.tasks.gated)
        await network.cut()
        worker.app.control.revoke(lost.id, terminate=True)
        told = "how 1 tasks ended is not recorded: PostgreSQL is away"
        await becomes_true(lambda: told in worker.log.read_text())

        await network.mend()
        second = Stage(worker, client, place).scene("second")
        killed = await asked(second, "unseen")
        worker.app.control.revoke(killed.id, terminate=True)
        assert (await second.settled(killed)).outcome == "killed"
        assert worker.log.read_text().count("is not recorded") == 1
    await network.cut()
