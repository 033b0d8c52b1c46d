"""Aborts in every pool, however it runs its tasks and however their process ends."""

import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import pytest
from anyio import to_thread
from billiard.exceptions import TimeLimitExceeded

from aioabort import AbortClient, TaskAborted
from tests.support.network import Network
from tests.support.waiting import BOUND, until

from .conftest import StartWorker
from .harness import Place, Stage, Worker

#: Nothing is found by a poll: what is known in time was told.
NO_POLL = {"aioabort_poll_interval": 3_600.0}

OpenStage = Callable[[Worker], AbstractAsyncContextManager[Stage]]

on_prefork = pytest.mark.parametrize("worker", ["prefork-notified"], indirect=True)
on_gevent = pytest.mark.parametrize("worker", ["gevent-notified"], indirect=True)


@pytest.fixture
def open_stage(place: Place) -> OpenStage:
    """Opens a stage on a worker that the test has started for itself."""

    @asynccontextmanager
    async def stage(worker: Worker) -> AsyncIterator[Stage]:
        async with AbortClient(worker.app) as client:
            yield Stage(worker, client, place)

    return stage


async def ends(worker: Worker) -> int:
    """Wait until the worker has ended, and return its status."""
    return await to_thread.run_sync(worker.process.wait, BOUND)


async def signalled(worker: Worker, number: signal.Signals, answer: str) -> None:
    """Send the worker a signal, and wait until its log has the *answer*."""
    worker.process.send_signal(number)
    await until(lambda: answer in worker.log.read_text())


async def test_child_that_ends_after_each_task(
    start_worker: StartWorker, open_stage: OpenStage
) -> None:
    """A child settles its last task and tells its end, before it goes.

    child: aborted, never looks, ends, no poll | exits | next child: an agent of its own
    """
    worker = start_worker(
        "prefork", worker_concurrency=1, worker_max_tasks_per_child=1, **NO_POLL
    )
    processes: list[str] = []
    async with open_stage(worker) as stage:
        for number in range(3):
            first = stage.scene(f"late-{number}")
            late = await first.start(stage.tasks.gated)
            await late.abort()
            first.place.open("end")
            assert await late.wait(BOUND) == "done"
            assert (await first.settled(late)).outcome == "too_late"

            second = stage.scene(f"aborted-{number}")
            aborted = await second.start(stage.tasks.in_pools.waiting)
            await aborted.abort()
            with pytest.raises(TaskAborted):
                await aborted.wait(BOUND)
            assert (await second.settled(aborted)).outcome == "aborted"
            processes += second.place.lines("body")
    assert len(set(processes)) == 3


@on_prefork
async def test_soft_time_limit_of_an_abortable_task(stage: Stage) -> None:
    """A task that cleans up after its soft limit still sees an abort.

    limit: raised in the body | caught | aborted | the task looks
    """
    result = await stage.start(stage.tasks.in_pools.limited, soft_time_limit=1)
    await stage.place.reached("limited")
    await result.abort()

    assert await result.wait(BOUND) == "stopped"
    assert (await stage.settled(result)).outcome == "returned"


@on_prefork
async def test_hard_time_limit_of_an_aborted_task(stage: Stage) -> None:
    """A task that its pool kills ends as such, and the next child hears of aborts.

    aborted | never looks | limit: killed | FAILURE | next child: an agent of its own
    """
    first = stage.scene("killed")
    killed = await first.start(stage.tasks.gated, time_limit=1)
    await killed.abort()
    with pytest.raises(TimeLimitExceeded):
        await killed.wait(BOUND)

    scenes = [stage.scene(str(slot)) for slot in range(stage.worker.concurrency)]
    results = [await s.start(stage.tasks.in_pools.waiting) for s in scenes]
    for result in results:
        await result.abort()
        with pytest.raises(TaskAborted):
            await result.wait(BOUND)


@on_prefork
async def test_child_that_is_killed_after_its_task_saw_the_abort(stage: Stage) -> None:
    """The redelivery of a task that saw its abort and was killed then does not run.

    aborted | seen | recorded as seen | SIGKILL | delivered again: body never begins
    """
    result = await stage.start(stage.tasks.in_pools.dying_aborted)
    await result.abort(reason="enough")

    async def recorded() -> bool:
        request = (await result.snapshot()).request
        return request is not None and request.seen_at is not None

    await until(recorded)
    stage.place.open("die")

    with pytest.raises(TaskAborted, match="enough"):
        await result.wait(BOUND)
    assert (await stage.settled(result)).outcome == "aborted"
    assert len(stage.place.lines("runs")) == 2
    assert len(stage.place.lines("body")) == 1


@pytest.mark.parametrize("worker", ["prefork-notified", "solo-notified"], indirect=True)
async def test_threads_of_a_task(stage: Stage) -> None:
    """Where one task runs at a time, the threads that it starts find it."""
    for name in ("first", "second"):
        each = stage.scene(name)
        result = await each.start(stage.tasks.in_pools.with_threads)
        await result.abort()
        assert await result.wait(BOUND) == "stopped"
        assert (await each.settled(result)).outcome == "returned"


async def test_spawned_child(start_worker: StartWorker, open_stage: OpenStage) -> None:
    """A child that is a fresh interpreter, and no fork, hears of aborts as well."""
    worker = start_worker(
        "prefork", worker_concurrency=1, worker_pool_start_method="spawn", **NO_POLL
    )
    async with open_stage(worker) as stage:
        result = await stage.start(stage.tasks.in_pools.waiting)
        await result.abort()
        with pytest.raises(TaskAborted):
            await result.wait(BOUND)
        assert (await stage.settled(result)).outcome == "aborted"


async def test_hundred_coroutines_in_threads(
    start_worker: StartWorker, place: Place
) -> None:
    """Many coroutines at once share one connection, and an abort reaches each."""
    worker = start_worker("threads", worker_concurrency=100, **NO_POLL)
    coroutine = worker.project.in_pools.coroutine
    ids = [coroutine.delay(str(place.folder)).id for _ in range(100)]
    await place.reached("body", times=len(ids))
    assert len(worker.connections()) == 1

    async with AbortClient(worker.app) as client, anyio.create_task_group() as group:
        for task_id in ids:
            group.start_soon(aborted, client, task_id)
    assert len(place.lines("cleaned")) == len(ids)
    assert sorted(place.lines("id")) == sorted(ids)


async def aborted(client: AbortClient, task_id: str) -> None:
    """Abort a task, and wait until it has ended by that."""
    await client.abort(task_id)
    with pytest.raises(TaskAborted):
        await client.wait(task_id, BOUND)


# gevent: the pool's threads are greenlets, and the agent's is none.


@on_gevent
async def test_greenlet_that_computes(stage: Stage) -> None:
    """A greenlet that never lets another one run sees its abort all the same."""
    result = await stage.start(stage.tasks.in_pools.spinning)
    await result.abort()

    assert await result.wait(BOUND) == "stopped"
    assert (await stage.settled(result)).outcome == "returned"


@on_gevent
async def test_greenlets_run_while_others_wait(stage: Stage) -> None:
    """To wait for the start's look, or for an abort, holds up no other greenlet."""
    others = [stage.scene(str(number)) for number in range(3)]
    beating = stage.publish(stage.tasks.in_pools.beating, 100)
    results = [await other.start(stage.tasks.in_pools.waiting) for other in others]
    await results[1].abort()
    with pytest.raises(TaskAborted):
        await results[1].wait(BOUND)
    assert "beaten" not in stage.place

    for result in (results[0], results[2]):
        assert not (await result.snapshot()).is_finished
        await result.abort()
        with pytest.raises(TaskAborted):
            await result.wait(BOUND)
    assert await beating.wait(BOUND) < 1


@on_gevent
async def test_greenlet_that_runs_a_loop_of_its_own(stage: Stage) -> None:
    """``asyncio.run()`` works in a task: the agent's loop is not in its thread."""
    result = await stage.start(stage.tasks.in_pools.running_a_loop)

    assert await result.wait(BOUND) == "ran"


@on_gevent
async def test_callback_among_greenlets(stage: Stage) -> None:
    """A callback runs as a greenlet: it may wait as the task itself does."""
    result = await stage.start(stage.tasks.in_pools.calling_back)
    await result.abort()

    with pytest.raises(TaskAborted):
        await result.wait(BOUND)
    assert len(stage.place.lines("called")) == 1


@on_gevent
async def test_greenlet_is_not_interrupted(stage: Stage) -> None:
    """``abort_mode="raise"`` harms no greenlet; one warning tells that it has no effect."""
    scenes = [stage.scene(name) for name in ("first", "second")]
    results = [await s.start(stage.tasks.in_pools.looking_away) for s in scenes]
    for result in results:
        await result.abort()
    for each in scenes:
        each.place.open("end")

    assert [await result.wait(BOUND) for result in results] == ["done", "done"]
    assert stage.worker.log.read_text().count("cannot interrupt a greenlet") == 1


@on_gevent
async def test_coroutine_beside_greenlets(stage: Stage) -> None:
    """A coroutine resolves names, uses threads and is cancelled, as anywhere else."""
    result = await stage.start(stage.tasks.in_pools.coroutine)
    await result.abort()

    with pytest.raises(TaskAborted):
        await result.wait(BOUND)
    assert stage.place.lines("id") == [result.id]
    assert len(stage.place.lines("cleaned")) == 1


@on_gevent
async def test_coroutines_that_publish_beside_greenlets(stage: Stage) -> None:
    """A coroutine sends tasks and awaits them, while greenlets wait for coroutines."""
    results = [
        stage.publish(stage.tasks.in_async.delegating, number) for number in range(3)
    ]
    assert [await result.wait(BOUND) for result in results] == [0, 4, 8]


async def test_server_known_by_name(
    dsn: str, start_worker: StartWorker, open_stage: OpenStage
) -> None:
    """Under gevent, the agent resolves a name without the pool's help."""
    network = Network(dsn)
    await network.mend()
    named = network.dsn.replace("127.0.0.1", "localhost")
    worker = start_worker("gevent", dsn, aioabort_dsn=named, **NO_POLL)
    async with open_stage(worker) as stage:
        connections = network.connections
        result = await stage.start(stage.tasks.in_pools.waiting)
        assert network.connections > connections
        await result.abort()
        with pytest.raises(TaskAborted):
            await result.wait(BOUND)
        worker.process.terminate()
        assert await ends(worker) == 0
    await network.cut()


# Eventlet has no release for later versions.
@pytest.mark.only_if(sys.version_info < (3, 14))
async def test_eventlet(start_worker: StartWorker, place: Place) -> None:
    """Tasks run, but cannot be aborted, and one line of the log says so."""
    worker = start_worker("eventlet")
    await runs_without_aborts(worker, place, "the eventlet pool is not supported")


async def test_app_without_postgresql(
    start_worker: StartWorker, place: Place, in_redis: tuple[str, dict[str, str]]
) -> None:
    """The same is true where aioabort does not know where to ask."""
    url, options = in_redis
    worker = start_worker(
        "threads",
        result_backend=url,
        result_backend_transport_options=options,
    )
    await runs_without_aborts(worker, place, "aioabort_dsn")


async def runs_without_aborts(worker: Worker, place: Place, problem: str) -> None:
    """See that abortable tasks run, and that the log says once why no abort comes.

    worker ready: logged | two tasks run: not logged again
    """
    told = "tasks run, but cannot be aborted: "
    await until(lambda: told in worker.log.read_text())
    for number in range(2):
        worker.project.once.delay(str(place.folder))
        await place.reached("body", times=number + 1)
        worker.project.in_async.doubling.delay(str(place.folder), 21)
    log = worker.log.read_text()
    assert log.count(told) == 1
    assert problem in log.partition(told)[2].partition("\n")[0]


@pytest.mark.parametrize(
    ("worker", "way"),
    [
        ("prefork-notified", "by notifications, and by a poll every "),
        ("solo-polling", "by a poll every "),
    ],
    indirect=["worker"],
)
async def test_start_says_how_aborts_arrive(worker: Worker, way: str) -> None:
    """One line, before any task has run, names the way and the database."""
    told = "aioabort worker: aborts arrive "
    await until(lambda: told in worker.log.read_text())
    log = worker.log.read_text()
    assert log.count(told) == 1
    line = log.partition(told)[2].partition("\n")[0]
    assert line.startswith(way)
    assert "from postgresql://" in line


# The end of a worker.


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
async def test_abort_during_a_warm_shutdown(
    start_worker: StartWorker, open_stage: OpenStage, pool: str
) -> None:
    """A task that a stopping worker waits for hears of its abort, and all is recorded.

    TERM | aborted | task ends | recorded | connection closed | worker ends
    """
    worker = start_worker(pool, **NO_POLL)
    async with open_stage(worker) as stage:
        result = await stage.start(stage.tasks.in_pools.waiting)
        await signalled(worker, signal.SIGTERM, "Warm shutdown")
        await result.abort()
        with pytest.raises(TaskAborted):
            await result.wait(BOUND)
        assert await ends(worker) == 0
        assert (await stage.settled(result)).outcome == "aborted"
    await until(lambda: not worker.connections())
    assert "Traceback" not in worker.log.read_text()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
async def test_end_during_a_warm_shutdown(
    start_worker: StartWorker, open_stage: OpenStage, pool: str
) -> None:
    """What the last task of a worker has not seen is recorded before it ends.

    TERM | aborted, the worker is not told | ends | no poll | one last look | worker ends
    """
    worker = start_worker(pool, aioabort_notify=False, **NO_POLL)
    async with open_stage(worker) as stage:
        result = await stage.start(stage.tasks.gated)
        await signalled(worker, signal.SIGTERM, "Warm shutdown")
        await result.abort()
        stage.place.open("end")
        assert await ends(worker) == 0
        assert (await stage.ended(result)).state == "SUCCESS"
        assert (await stage.settled(result)).outcome == "too_late"


async def test_abort_during_a_soft_shutdown(
    start_worker: StartWorker, open_stage: OpenStage
) -> None:
    """A task that is given some more seconds hears of its abort, too."""
    worker = start_worker("prefork", worker_soft_shutdown_timeout=2.0, **NO_POLL)
    async with open_stage(worker) as stage:
        result = await stage.start(stage.tasks.in_pools.waiting)
        await signalled(worker, signal.SIGQUIT, "Soft Shutdown")
        await result.abort()
        with pytest.raises(TaskAborted):
            await result.wait(BOUND)
        assert (await stage.settled(result)).outcome == "aborted"
        await ends(worker)
    await until(lambda: not worker.connections())


async def test_cold_shutdown(start_worker: StartWorker, place: Place) -> None:
    """A task that is killed with its worker leaves no connection behind."""
    worker = start_worker("prefork", **NO_POLL)
    worker.project.in_pools.waiting.delay(str(place.folder))
    await place.reached("body")
    assert len(worker.connections()) == 1
    await signalled(worker, signal.SIGQUIT, "Cold shutdown")
    await ends(worker)
    await until(lambda: not worker.connections())
