"""The result backend is away when a task that was asked to stop ends."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from anyio import create_task_group, fail_after, to_thread
from celery import Celery, states
from celery.app.trace import trace_task
from celery.backends.cache import CacheBackend

from aioabort import AbortableTask, current_token
from aioabort.postgres.store import Store
from aioabort.worker import outlast
from aioabort.worker.agent import stop_agents
from tests.integration.test_agent import outcome_of, until

MakeApp = Callable[..., Celery]

#: What Celery says when it cannot store an end.
pytestmark = pytest.mark.filterwarnings("ignore:Exception raised outside body")

running: set[str] = set()


class AwayError(Exception):
    """What a backend raises when nobody answers."""


class Backend(CacheBackend):
    """A backend of Celery's that is away as often as is said."""

    away = 0

    def get(self, key: str) -> Any:
        """Answer, or not."""
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
def back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Agents are each test's own, and nobody waits for long."""
    monkeypatch.setattr(outlast, "FIRST_PAUSE", 0.01)
    yield
    Backend.away = 0
    stop_agents()


def make_task(app: Celery, ending: Callable[[], object], away: int) -> AbortableTask:
    app.conf.task_store_errors_even_if_ignored = True

    @app.task(base=AbortableTask, shared=False, name="ending")
    def task() -> None:
        """Wait for the abort, then end while nobody answers."""
        running.add(current_token().task_id)
        assert current_token().wait(10)
        Backend.away = away
        ending()

    task.backend = Backend(app=app, url="memory://")
    return task  # type: ignore[no-any-return]


async def run_aborted(app: Celery, task: AbortableTask, store: Store) -> str:
    """Run *task* as a worker does, and ask it to stop; return its id."""
    task_id = str(uuid4())
    request = {"id": task_id, "hostname": "worker@host", "is_eager": False}
    run = partial(trace_task, task, task_id, (), {}, request, app=app)
    with fail_after(20):
        async with create_task_group() as group:
            group.start_soon(to_thread.run_sync, run)
            await until(lambda: task_id in running)
            await store.request([task_id])
    return task_id


def fail() -> None:
    raise ValueError("stopped in the middle")


async def test_the_end_of_an_aborted_task_outlasts_an_outage(
    dsn: str, make_app: MakeApp, store: Store
) -> None:
    """It is stored when the backend is back, and the request is settled by it.

    TaskAborted | the backend is away: nothing stored | back | REVOKED
    """
    app = make_app(dsn, aioabort_poll_interval=0.05)
    task = make_task(app, lambda: current_token().raise_if_aborted(), away=7)
    task_id = await run_aborted(app, task, store)

    assert task.backend.get_state(task_id) == states.REVOKED
    await outcome_of(store, task_id, "aborted")


async def test_an_error_that_is_none_of_an_outage(
    dsn: str, make_app: MakeApp, store: Store
) -> None:
    """A backend that answers and refuses is not asked for ever; the request is settled."""
    app = make_app(dsn, aioabort_poll_interval=0.05)
    task = make_task(app, lambda: current_token().raise_if_aborted(), away=0)

    def refuse(*_: object, **__: object) -> None:
        raise AwayError

    task.backend.mark_as_failure = refuse
    task_id = await run_aborted(app, task, store)

    await outcome_of(store, task_id, "failed")


async def test_a_failure_that_celery_loses(
    dsn: str, make_app: MakeApp, store: Store
) -> None:
    """The request is settled all the same: nobody will run the task again.

    the task sees the abort and fails | nothing can be stored, ever | the next look
    """
    app = make_app(dsn, aioabort_poll_interval=0.05)
    task = make_task(app, fail, away=1_000)
    task_id = await run_aborted(app, task, store)

    await outcome_of(store, task_id, "failed")
