"""``async def`` tasks: what works in their bodies, and how an abort ends them."""

import asyncio
import time
from collections.abc import Callable

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from aioabort import AbortClient
from tests.support.waiting import BOUND

from .conftest import StartWorker, follow_log
from .harness import Place, Stage, Worker

on_prefork = pytest.mark.parametrize("worker", ["prefork-notified"], indirect=True)
on_threads = pytest.mark.parametrize("worker", ["threads-notified"], indirect=True)


@pytest.fixture(params=["prefork-notified", "threads-polling"])
def worker(
    request: pytest.FixtureRequest,
    workers: Callable[[str], Worker],
    start_worker: StartWorker,
) -> Worker:
    """Each worker in turn; "crowd" is one with many threads."""
    if request.param == "crowd":
        worker = start_worker("threads", worker_concurrency=40)
    else:
        worker = workers(request.param)
    follow_log(request, worker)
    return worker


async def test_value(stage: Stage) -> None:
    """The value of the coroutine is the result of the task."""
    result = stage.publish(stage.tasks.in_async.doubling, 21)
    assert await result.wait(BOUND) == 42


async def test_error(stage: Stage) -> None:
    """The error of the coroutine is the error of the task, with its traceback."""
    result = stage.publish(stage.tasks.in_async.failing)
    with pytest.raises(ValueError, match="broken"):
        await result.wait(BOUND)
    snapshot = await result.snapshot()
    assert snapshot.state == "FAILURE"
    assert snapshot.traceback is not None
    assert "in failing" in snapshot.traceback


@pytest.mark.parametrize("name", ["retrying", "autoretrying"])
async def test_retry(stage: Stage, name: str) -> None:
    """``self.retry()`` and ``autoretry_for`` run the task again."""
    result = stage.publish(getattr(stage.tasks.in_async, name))
    assert await result.wait(BOUND) == 1
    assert len(stage.place.lines("body")) == 2


async def test_request_and_token_inside(stage: Stage) -> None:
    """The coroutine, its threads and the tasks that it sends find the right request."""
    result = stage.publish(stage.tasks.in_async.identifying)
    seen = await result.wait(BOUND)

    own = [result.id] * 3
    assert seen["before"] == own
    assert seen["after"] == own
    assert seen["in a thread"] == own
    assert seen["in a task"] == own
    child = stage.client.result(seen["child"])
    assert await child.wait(BOUND) == [result.id, result.id]


async def test_requests_of_tasks_on_one_loop(stage: Stage) -> None:
    """Each of several coroutines on one loop finds its own request."""
    results = [
        scene.publish(stage.tasks.in_async.identifying)
        for scene in (stage.scene(f"{number}") for number in range(8))
    ]
    for result in results:
        seen = await result.wait(BOUND)
        assert seen["after"] == seen["in a task"] == [result.id] * 3


async def test_abort_cancels(stage: Stage) -> None:
    """The coroutine is cancelled where it waits, and may await while it cleans up.

    Its ``autoretry_for=(Exception,)`` makes no further attempt.
    """
    result = await stage.start(stage.tasks.in_async.sleeping)
    await result.abort(reason="enough")

    await stage.aborted(result)
    assert stage.place.lines("cancelled") == ["True"]
    assert len(stage.place.lines("cleaned")) == 1
    assert len(stage.place.lines("runs")) == 1


async def test_coroutine_that_looks(stage: Stage) -> None:
    """A coroutine that stops by itself is not cancelled while it cleans up."""
    result = await stage.start(stage.tasks.in_async.stopping)
    await result.abort(reason="enough")

    await stage.aborted(result)
    assert len(stage.place.lines("cleaned")) == 1


async def test_task_group_inside(stage: Stage) -> None:
    """The children of an anyio task group are cancelled, too."""
    result = await stage.start(stage.tasks.in_async.grouping)
    await stage.place.reached("child", times=2)
    await result.abort(reason="enough")

    await stage.aborted(result)
    assert len(stage.place.lines("cleaned")) == 2


async def test_coroutine_that_swallows_the_cancellation(stage: Stage) -> None:
    """The value is kept, and the abort is recorded as seen."""
    result = await stage.start(stage.tasks.in_async.insisting, 1)
    await result.abort()

    assert await result.wait(BOUND) == "kept"
    assert (await result.snapshot()).state == "SUCCESS"
    request = await stage.settled(result)
    assert request.outcome == "returned"
    assert request.seen_at is not None


async def test_coroutine_that_insists(stage: Stage) -> None:
    """A coroutine that goes on is cancelled again after the cleanup timeout."""
    result = await stage.start(stage.tasks.in_async.insisting, 2)
    await result.abort()

    assert await result.wait(BOUND) == "kept"
    assert len(stage.place.lines("asked")) == 2


@on_threads
async def test_abort_in_a_shield(stage: Stage) -> None:
    """The coroutine is cancelled at the end of its shield."""
    result = await stage.start(stage.tasks.in_async.shielding)
    await result.abort(reason="enough")
    # One poll finds both requests, or this one later.
    other = await stage.scene("other").start(stage.tasks.raising)
    await other.abort(reason="enough")
    await stage.aborted(other)
    assert "shield" not in stage.place
    stage.place.open("end")

    await stage.aborted(result)
    assert "shield" in stage.place
    assert "end of the body" not in stage.place


@on_prefork
async def test_soft_time_limit(stage: Stage) -> None:
    """It cancels the coroutine, which cleans up, and fails the task."""
    result = stage.publish(stage.tasks.in_async.sleeping, soft_time_limit=1, retries=3)

    with pytest.raises(SoftTimeLimitExceeded):
        await result.wait(BOUND)
    assert stage.place.lines("cancelled") == ["False"]
    assert len(stage.place.lines("cleaned")) == 1
    assert (await result.snapshot()).state == "FAILURE"


@on_threads
async def test_coroutine_that_blocks_its_loop(stage: Stage) -> None:
    """Other tasks of the process notice their aborts meanwhile."""
    result = await stage.start(stage.tasks.in_async.blocking)
    other = await stage.scene("other").start(stage.tasks.in_async.beside)
    await other.abort(reason="enough")

    await stage.aborted(other)
    assert not (await result.snapshot()).is_finished
    stage.place.open("end")
    assert await result.wait(BOUND) is None


async def test_abort_before_the_start(stage: Stage) -> None:
    """The coroutine never runs, and Python does not warn that it did not."""
    start = stage.worker.log.stat().st_size
    async with stage.occupied():
        result = stage.publish(stage.tasks.in_async.sleeping)
        await result.abort(reason="enough")

    await stage.aborted(result)
    assert "body" not in stage.place
    assert b"never awaited" not in stage.worker.log.read_bytes()[start:]


@pytest.mark.parametrize("worker", ["crowd"], indirect=True)
async def test_many_at_once(worker: Worker, place: Place) -> None:
    """Forty coroutines of one process run side by side, and one connection serves them.

    Closes: a connection for each task, or a loop that runs one of them at a time.
    """
    # Its client has no connections yet.
    stage = Stage(worker, AbortClient(worker.app), place)
    scenes = [stage.scene(f"{number}") for number in range(40)]
    results = [await scene.start(stage.tasks.in_async.sleeping) for scene in scenes]
    assert len(worker.connections()) == 1

    start = time.perf_counter()
    async with stage.client:
        await asyncio.gather(*(result.abort(reason="enough") for result in results))
        for scene, result in zip(scenes, results, strict=True):
            await scene.aborted(result)
            assert "cleaned" in scene.place
    assert time.perf_counter() - start < BOUND
