"""``abort(grace=…)``: what will not stop is killed, once, and nothing else is."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import anyio
import pytest

from aioabort import AbortableAsyncResult, TaskAborted
from tests.support.waiting import BOUND, until

from .conftest import StartWorker, follow_log
from .harness import Stage, Worker

CONTROLLED: dict[str, Any] = {
    "worker_enable_remote_control": True,
    "aioabort_poll_interval": 0.2,
}


@pytest.fixture(scope="session")
def graceful_workers(
    request: pytest.FixtureRequest, start_worker: StartWorker
) -> Callable[[str], Worker]:
    """Workers that can be told to kill, by their names."""

    @cache
    def worker(name: str) -> Worker:
        pool, _, broker = name.partition("-")
        settings = dict(CONTROLLED)
        if broker == "redis":
            settings |= request.getfixturevalue("broker_in_redis")
        if broker == "uncontrolled":
            settings["worker_enable_remote_control"] = False
        if broker == "one":
            settings["worker_concurrency"] = 1
        return start_worker(pool, **settings)

    return worker


@pytest.fixture(params=["prefork"])
def worker(
    request: pytest.FixtureRequest, graceful_workers: Callable[[str], Worker]
) -> Worker:
    """A prefork worker, unless a test asks for another one."""
    worker = graceful_workers(request.param)
    follow_log(request, worker)
    return worker


def kills(worker: Worker, result: AbortableAsyncResult[Any]) -> int:
    """Return how often the worker was told to kill the task."""
    return worker.log.read_text().count(f"Terminating {result.id}")


async def is_killed(stage: Stage, result: AbortableAsyncResult[Any]) -> None:
    """Wait for the end that a kill has, with all that belongs to it."""
    with pytest.raises(TaskAborted) as raised:
        await result.wait(BOUND)
    assert raised.value.args == ("enough", "ann", result.id)
    assert (await result.snapshot()).state == "REVOKED"
    assert (await stage.settled(result)).outcome == "killed"
    assert await result.is_aborted()
    assert kills(stage.worker, result) == 1


async def serves(stage: Stage) -> None:
    """See that the worker still runs tasks, in all of its processes."""
    scenes = [stage.scene(f"after-{n}") for n in range(stage.worker.concurrency)]
    results = [await scene.start(stage.tasks.in_pools.waiting) for scene in scenes]
    for result in results:
        await result.abort()
        with pytest.raises(TaskAborted):
            await result.wait(BOUND)


def is_running(pid: int) -> bool:
    """Whether there is such a process."""
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.parametrize("worker", ["prefork", "prefork-redis"], indirect=True)
async def test_body_that_never_looks(stage: Stage) -> None:
    """It is killed when its grace is over, and its process is replaced."""
    result = await stage.start(stage.tasks.gated)
    receipt = await result.abort(reason="enough", requested_by="ann", grace=0.3)
    assert receipt.request is not None
    assert receipt.request.kill_at is not None

    await is_killed(stage, result)
    assert (await stage.settled(result)).seen_at is None
    await serves(stage)


async def test_body_that_sees_it_and_goes_on(stage: Stage) -> None:
    """It is killed all the same; that it saw the request is known."""
    result = await stage.start(stage.tasks.in_pools.ignoring)
    await result.abort(reason="enough", requested_by="ann", grace=0.3)

    await is_killed(stage, result)
    assert "seen" in stage.place
    assert (await stage.settled(result)).seen_at is not None


@pytest.mark.parametrize("kind", ["stuck", "stopped"])
async def test_process_that_cannot_act(stage: Stage, kind: str) -> None:
    """Another process does it, by a signal that needs no Python in the first one.

    child: no thread of it runs | grace is over | another child, with a task: revokes
    """
    tasks = stage.tasks.in_pools
    other = stage.scene("other")
    helper = await other.start(tasks.waiting)
    result = await stage.start(tasks.stuck if kind == "stuck" else tasks.waiting)
    [pid] = map(int, stage.place.lines("body"))
    if kind == "stopped":
        os.kill(pid, signal.SIGSTOP)
    await result.abort(reason="enough", requested_by="ann", grace=0)

    await is_killed(stage, result)
    await until(lambda: not is_running(pid))
    assert not (await helper.snapshot()).is_finished
    await helper.abort()
    assert (await other.settled(helper)).outcome == "aborted"
    await serves(stage)


async def test_thread_that_heeds_no_signal(stage: Stage) -> None:
    """A process whose main thread stays in C after SIGTERM ends itself.

    agent: revokes | parent: SIGTERM, REVOKED | main thread: in C | agent: SIGKILL
    """
    result = await stage.start(stage.tasks.in_pools.locked)
    [pid] = map(int, stage.place.lines("body"))
    await result.abort(reason="enough", requested_by="ann", grace=0)

    await is_killed(stage, result)
    await until(lambda: not is_running(pid))
    await serves(stage)
    assert (await result.snapshot()).state == "REVOKED"


async def test_grace_that_is_shortened(stage: Stage) -> None:
    """A second, more urgent request is heeded; the first one's reason stands."""
    result = await stage.start(stage.tasks.gated)
    await result.abort(reason="enough", requested_by="ann", grace=600)
    receipt = await result.abort(reason="at once", requested_by="bob", grace=0.1)

    assert receipt.answer == "requested_before"
    await is_killed(stage, result)


@pytest.mark.parametrize("worker", ["prefork-one"], indirect=True)
async def test_task_that_ends_within_its_grace(stage: Stage) -> None:
    """Neither it nor the next task of its process is killed.

    aborted, grace | ends | next task: same process | grace is over | next task: goes on
    """
    result = await stage.start(stage.tasks.in_pools.ignoring)
    receipt = await result.abort(reason="enough", requested_by="ann", grace=1)
    await stage.place.reached("seen")
    stage.place.open("end")
    assert await result.wait(BOUND) == "done"
    scene = stage.scene("next")
    following = await scene.start(stage.tasks.in_pools.ignoring)
    assert scene.place.lines("body") == stage.place.lines("body")

    assert receipt.request is not None
    # Some time after the kill would have come.
    await until(
        lambda: stage.worker.query(
            "SELECT %s + interval '0.5 s' < clock_timestamp() AS is_over",
            receipt.request and receipt.request.kill_at,
        )[0]["is_over"]
    )
    assert (await stage.settled(result)).outcome == "returned"
    assert not (await following.snapshot()).is_finished
    await following.abort()
    scene.place.open("end")
    assert await following.wait(BOUND) == "done"
    assert kills(stage.worker, result) == 0


@pytest.mark.parametrize("worker", ["prefork-redis"], indirect=True)
async def test_body_that_ends_while_it_is_killed(stage: Stage) -> None:
    """The kill hits its task: not what comes after it, and not how that is stored.

    agent: still runs, revokes | parent: slow | body: ends, waits | parent: SIGTERM
    Closes: FAILURE is stored, the parent hears of the revoke first, and the process is
    killed for a task that has ended, whose result REVOKED overwrites.
    """
    result = await stage.start(stage.tasks.in_pools.failing)
    stage.worker.process.send_signal(signal.SIGSTOP)
    try:
        await result.abort(reason="enough", requested_by="ann", grace=0)
        told = f"killing task {result.id}"
        await until(lambda: told in stage.worker.log.read_text())
        stage.place.open("end")
        await stage.place.reached("ended")
        with anyio.move_on_after(0.3):
            await stage.in_state(result, "FAILURE")
        assert (await result.snapshot()).state == "ABORTED"
    finally:
        stage.worker.process.send_signal(signal.SIGCONT)

    await is_killed(stage, result)
    await serves(stage)


@pytest.mark.parametrize(
    ("worker", "obstacle"),
    [
        ("threads", "its pool has no process to end"),
        ("solo", "its pool has no process to end"),
        ("gevent", "its pool has no process to end"),
        ("prefork-uncontrolled", "worker_enable_remote_control is off"),
    ],
    indirect=["worker"],
)
async def test_worker_that_cannot_kill(stage: Stage, obstacle: str) -> None:
    """The task goes on; the outcome says why, and one line of the log."""
    result = await stage.start(stage.tasks.gated)
    await result.abort(grace=0.1)
    told = f"task {result.id} cannot be killed after its grace: {obstacle}"
    await until(lambda: told in stage.worker.log.read_text())
    stage.place.open("end")

    assert await result.wait(BOUND) == "done"
    assert (await stage.settled(result)).outcome == "unkillable"
    assert not await result.is_aborted()
    assert stage.worker.log.read_text().count(told) == 1
    assert kills(stage.worker, result) == 0


@pytest.mark.parametrize("worker", ["threads"], indirect=True)
async def test_task_that_cannot_be_killed_but_saw_its_abort(stage: Stage) -> None:
    """What it made of the abort counts."""
    result = await stage.start(stage.tasks.in_pools.ignoring)
    await result.abort(grace=0.1)
    told = f"task {result.id} cannot be killed"
    await until(lambda: told in stage.worker.log.read_text())
    stage.place.open("end")

    assert await result.wait(BOUND) == "done"
    assert (await stage.settled(result)).outcome == "returned"
