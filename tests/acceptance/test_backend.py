"""The result backend in a worker: every pool, plain tasks, and Celery's own workflows."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread
from celery import Celery, chain, chord, group
from celery.contrib.abortable import AbortableAsyncResult as CelerysResult
from celery.exceptions import TaskRevokedError
from celery.result import result_from_tuple

from aioabort import TaskAborted
from tests.support.waiting import BOUND, until

from .conftest import OUR_WORKERS, OURS, StartWorker, follow_log
from .harness import Stage, Worker

#: A wait is ended by a notification, or not at all.
NO_POLL = {"aioabort_poll_interval": 600.0}

in_pools = pytest.mark.parametrize("worker", OUR_WORKERS, indirect=True)
in_prefork = pytest.mark.parametrize("worker", ["prefork-notified-ours"], indirect=True)


async def get(result: Any, **options: Any) -> Any:
    """Get a result as Celery does, in a thread."""
    return await to_thread.run_sync(partial(result.get, timeout=BOUND, **options))


@in_pools
async def test_plain_task(stage: Stage) -> None:
    """A plain task's result is awaited, and got by Celery's own way, too."""
    sent = stage.tasks.in_backend.add.delay(1, 2)

    assert await stage.client.wait(sent.id, BOUND) == 3
    assert await get(sent) == 3


@in_pools
async def test_failure(stage: Stage) -> None:
    """An error comes as it was, with its traceback."""
    sent = stage.tasks.in_backend.fail.delay("why")

    with pytest.raises(ValueError, match="why"):
        await stage.client.wait(sent.id, BOUND)
    with pytest.raises(ValueError, match="why"):
        await get(sent)
    assert "in fail" in await to_thread.run_sync(lambda: sent.traceback)


@in_pools
async def test_celerys_abort_of_a_queued_task(stage: Stage) -> None:
    """Flower's and contrib's abort of a queued task is not erased by STARTED."""
    async with stage.occupied():
        result = stage.publish(stage.tasks.once)
        celerys = CelerysResult(result.id, app=stage.worker.app)
        await to_thread.run_sync(celerys.abort)

    with pytest.raises(TaskAborted):
        await result.wait(BOUND)
    assert "body" not in stage.place


@in_pools
async def test_celerys_abort_of_a_task_that_reports(stage: Stage) -> None:
    """Nor by progress, in a task of celery.contrib.abortable that knows nothing of us."""
    sent = stage.tasks.in_backend.abortable.delay(str(stage.place.folder))
    await stage.place.reached("body")
    celerys = CelerysResult(sent.id, app=stage.worker.app)
    await to_thread.run_sync(celerys.abort)
    stage.place.open("report")

    assert await get(sent) == "stopped"


@dataclass(frozen=True)
class Flow:
    """A workflow of Celery's, and what it comes to."""

    name: str
    build: Callable[[Any], Any]
    value: Any


FLOWS = [
    Flow("chain", lambda t: chain(t.add.s(1, 1), t.add.s(2), t.add.s(3)), 7),
    Flow("group", lambda t: group(t.add.s(n, n) for n in range(3)), [0, 2, 4]),
    Flow("chord", lambda t: chord([t.add.s(n, n) for n in range(3)], t.total.s()), 6),
    Flow("empty chord", lambda t: chord([], t.total.s()), 0),
    Flow(
        "group in a chain",
        lambda t: t.add.s(1, 1) | group(t.add.s(1), t.add.s(2)) | t.total.s(),
        7,
    ),
    Flow(
        "chord of chains",
        lambda t: chord(
            [chain(t.add.s(n, 1), t.add.s(1)) for n in range(3)], t.total.s()
        ),
        9,
    ),
    Flow(
        "nested chords",
        lambda t: chord(
            [chord([t.add.s(n, n) for n in range(2)], t.total.s()), t.add.s(1, 1)],
            t.total.s(),
        ),
        4,
    ),
    Flow(
        "nested groups",
        lambda t: group(group(t.add.s(1, 1), t.add.s(2, 2)), t.add.s(3, 3)),
        [2, 4, 6],
    ),
]


@in_prefork
@pytest.mark.parametrize("flow", FLOWS, ids=operator.attrgetter("name"))
async def test_workflow(stage: Stage, flow: Flow) -> None:
    """Each comes to its value."""
    sent = flow.build(stage.tasks.in_backend).apply_async()

    assert await get(sent) == flow.value


BROKEN = [
    Flow("chain", lambda t: chain(t.fail.s("why"), t.add.s(2)), ValueError),
    Flow("group", lambda t: group(t.add.s(1, 1), t.fail.s("why")), ValueError),
    Flow(
        "chord",
        lambda t: chord([t.add.s(1, 1), t.fail.s("why")], t.total.s()),
        Exception,
    ),
    Flow(
        "chord of chains",
        lambda t: chord([chain(t.fail.s("why"), t.add.s(1))], t.total.s()),
        Exception,
    ),
]


# Of what Celery does with the errbacks of a header, now and later.
@pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header")
@in_prefork
@pytest.mark.parametrize("flow", BROKEN, ids=operator.attrgetter("name"))
async def test_broken_workflow(stage: Stage, flow: Flow) -> None:
    """Each ends with the error, and its errback hears of it."""
    sent = flow.build(stage.tasks.in_backend)
    place = str(stage.place.folder)
    sent.link_error(stage.tasks.in_endings.hear.s(place=place))
    with pytest.raises(flow.value, match="why"):
        await get(sent.apply_async())
    await stage.place.reached("heard")


@in_prefork
async def test_group_that_is_saved(stage: Stage) -> None:
    """A group is found again by its id."""
    sent = group(stage.tasks.in_backend.add.s(n, n) for n in range(3)).apply_async()
    await to_thread.run_sync(sent.save)
    app = stage.worker.app
    restored = await to_thread.run_sync(app.GroupResult.restore, sent.id)

    # Before 5.7, Celery pickles it, and what it restores is the current app's.
    assert await get(result_from_tuple(restored.as_tuple(), app)) == [0, 2, 4]


def threads_of(worker: Worker) -> int:
    """Return how many threads the worker's main process has."""
    return len([*Path(f"/proc/{worker.process.pid}/task").iterdir()])


async def test_main_process_of_prefork(
    start_worker: StartWorker, request: pytest.FixtureRequest
) -> None:
    """It stores for a task whose process died, and keeps no thread after that."""
    worker = start_worker("prefork", backend=OURS, **NO_POLL)
    follow_log(request, worker)
    before = threads_of(worker)
    sent = worker.project.in_backend.die.delay()

    with pytest.raises(Exception, match="Worker exited prematurely"):
        await get(sent)
    await until(lambda: threads_of(worker) == before)


async def test_gevent(
    start_worker: StartWorker, request: pytest.FixtureRequest
) -> None:
    """Greenlets store results, over one connection of a thread that is none of theirs."""
    worker = start_worker("gevent", backend=OURS, aioabort_poll_interval=0.2)
    follow_log(request, worker)
    sent = [worker.project.in_backend.add.delay(number, 1) for number in range(20)]

    assert [await get(result) for result in sent] == [*range(1, 21)]


DB = "db+postgresql+psycopg"


@pytest.mark.parametrize(("stores", "reads"), [(OURS, DB), (DB, OURS)])
async def test_fleet_of_two_backends(
    start_worker: StartWorker, stores: str, reads: str
) -> None:
    """Of workers and clients, some may use Celery's backend and some ours."""
    worker = start_worker("solo", backend=stores)
    sent = worker.project.in_backend.add.delay(1, 2)
    url = worker.dsn.replace("postgresql", reads, 1)
    reader = Celery("reader", backend=url, set_as_current=False)

    assert await get(reader.AsyncResult(sent.id)) == 3
    reader.close()


async def test_revoked_task(
    start_worker: StartWorker, request: pytest.FixtureRequest
) -> None:
    """A task that expires in the queue ends as REVOKED: the main process stores that."""
    worker = start_worker("prefork", backend=OURS, aioabort_poll_interval=0.2)
    follow_log(request, worker)
    sent = worker.project.in_backend.add.apply_async((1, 2), expires=-1)

    with pytest.raises(TaskRevokedError):
        await get(sent)
