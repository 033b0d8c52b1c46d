"""The result backend is away when an aborted task ends."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from anyio import create_task_group, fail_after, to_thread
from celery import Celery, states
from celery.app.trace import trace_task
from celery.backends.cache import CacheBackend

from aioabort import AbortableTask, AbortClient, current_token
from aioabort.postgres.request_store import RequestStore
from aioabort.timing import Timing
from aioabort.worker.agent.agent import stop_agents
from tests.integration.test_agent import outcome_of, until
from tests.support.apps import MakeApp

#: Celery's warning when it cannot store a result.
pytestmark = pytest.mark.filterwarnings("ignore:Exception raised outside body")

running: set[str] = set()


class AwayError(Exception):
    """The error of a backend that is away."""


class Backend(CacheBackend):
    """Celery's cache backend, which is away for the next ``away`` calls."""

    away = 0

    def get(self, key: str) -> Any:
        """Return the value, unless the backend is away."""
        self._may_be_away()
        return super().get(key)

    def _store_result(self, *args: Any, **kwargs: Any) -> Any:
        self._may_be_away()
        return super()._store_result(*args, **kwargs)

    def _may_be_away(self) -> None:
        if Backend.away:
            Backend.away -= 1
            raise AwayError


@pytest.fixture(autouse=True)
def back() -> Iterator[None]:
    """Each test starts its own agents, with a backend that answers."""
    yield
    Backend.away = 0
    stop_agents()


def make_task(app: Celery, ending: Callable[[], object], away: int) -> AbortableTask:
    app.conf.task_store_errors_even_if_ignored = True

    @app.task(base=AbortableTask, shared=False, name="ending")
    def task() -> None:
        """Wait for the abort, then end while the backend is away."""
        running.add(current_token().task_id)
        assert current_token().wait(10)
        Backend.away = away
        ending()

    task.backend = Backend(app=app, url="memory://")
    return task  # type: ignore[no-any-return]


async def run_aborted(app: Celery, task: AbortableTask, store: RequestStore) -> str:
    """Run *task* as a worker does, and ask it to stop; return its id."""
    task_id = str(uuid4())
    request = {"id": task_id, "hostname": "worker@host", "is_eager": False}
    run = partial(trace_task, task, task_id, (), {}, request, app=app)
    with fail_after(20):
        async with create_task_group() as group:
            group.start_soon(to_thread.run_sync, run)
            await until(lambda: task_id in running)
            await store.request_aborts([task_id])
    return task_id


@pytest.fixture
def patient_app(dsn: str, make_app: MakeApp) -> Celery:
    """An app that tries soon again."""
    timing = Timing(store_retry_first=0.01)
    return make_app(dsn, aioabort_poll_interval=0.05, aioabort_timing=timing)


def fail() -> None:
    raise ValueError("stopped in the middle")


async def test_the_end_of_an_aborted_task_outlasts_an_outage(
    patient_app: Celery, store: RequestStore
) -> None:
    """It is stored when the backend is back, and settles the request.

    TaskAborted | the backend is away: nothing stored | back | REVOKED
    """
    task = make_task(patient_app, lambda: current_token().raise_if_aborted(), away=7)
    task_id = await run_aborted(patient_app, task, store)

    assert task.backend.get_state(task_id) == states.REVOKED
    await outcome_of(store, task_id, "aborted")


async def test_an_error_that_is_none_of_an_outage(
    patient_app: Celery, store: RequestStore
) -> None:
    """After three errors of a backend that answers, the request is settled."""
    task = make_task(patient_app, lambda: current_token().raise_if_aborted(), away=0)

    def refuse(*_: object, **__: object) -> None:
        raise AwayError

    task.backend.mark_as_failure = refuse
    task_id = await run_aborted(patient_app, task, store)

    await outcome_of(store, task_id, "failed")


async def test_a_failure_that_celery_loses(
    patient_app: Celery, store: RequestStore
) -> None:
    """The request is settled all the same: Celery does not run the task again.

    the task sees the abort and fails | nothing can be stored, ever | the next poll
    """
    task = make_task(patient_app, fail, away=1_000)
    task_id = await run_aborted(patient_app, task, store)

    await outcome_of(store, task_id, "failed")


@pytest.mark.parametrize("tracks_start", [True, False])
async def test_a_result_that_no_column_can_hold(
    dsn: str, make_app: MakeApp, store: RequestStore, task_id: str, tracks_start: bool
) -> None:
    """The task ends as FAILURE, and settles its request, whichever state is refused.

    abort | the name does not fit: STARTED is refused, so is Celery's FAILURE | ours
    abort | the body returns | SUCCESS is refused, so is Celery's FAILURE | ours
    """
    app = make_app(dsn, result_extended=True, aioabort_poll_interval=0.05)

    @app.task(base=AbortableTask, shared=False, name="n" * 300)
    def returning() -> int:
        """Return although the task is aborted."""
        return 1

    @app.task(base=AbortableTask, shared=False, name="m" * 300)
    def unstarted() -> None:
        """Never run."""

    task: AbortableTask = unstarted if tracks_start else returning
    task.track_started = tracks_start
    if tracks_start:
        await store.request_aborts([task_id])
    request = {"id": task_id, "task": task.name, "hostname": "worker@host"}
    run = partial(trace_task, task, task_id, (), {}, request, app=app)
    await to_thread.run_sync(run)

    async with AbortClient(app) as client:
        with (
            fail_after(20),
            pytest.raises(Exception, match=r"too long|failed to store"),
        ):
            await client.wait(task_id)
        receipt = await client.abort(task_id)
        with fail_after(20):
            assert await receipt.settled() == "too_late"
    if tracks_start:
        await outcome_of(store, task_id, "too_late")
