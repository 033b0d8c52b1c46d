"""A task id runs twice, and one of the runs is aborted: a stored result stays."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from anyio import to_thread
from billiard.einfo import ExceptionInfo
from celery import Celery, states
from celery.app.task import Context
from celery.app.trace import trace_task
from celery.exceptions import Retry, TaskRevokedError
from celery.worker import state as worker_state

from aioabort import AbortableTask, AbortClient, TaskAborted
from aioabort.worker.final_state import store_revoked
from aioabort.worker.main_process.recorder import recorder
from aioabort.worker.main_process.request import AbortableRequest
from tests.integration.steps import end
from tests.support.apps import MakeApp
from tests.support.waiting import BOUND, until

# Celery's own backend, with a redis-py that is newer.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex")

#: Counts the sessions that wait for a lock of another session.
BLOCKED = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""

#: The other run stores a result, or a state that is not final.
STORE = "UPDATE celery_taskmeta SET status = %s WHERE task_id = 'task'"

ABORTED = TaskAborted("enough", None, "task")


@pytest.fixture(params=["Celery's", "aioabort's"])
def database_app(request: pytest.FixtureRequest, dsn: str, make_app: MakeApp) -> Celery:
    """An app with its results in PostgreSQL, in Celery's backend or in ours."""
    app = make_app(dsn)
    if request.param == "aioabort's":
        app.conf.result_backend = f"aioabort+{dsn}"
    return app


@pytest.fixture
def redis_app(dsn: str, redis_url: str, make_app: MakeApp) -> Celery:
    """An app with its results in Redis."""
    return make_app(dsn, result_backend=redis_url, aioabort_dsn=dsn)


@pytest.fixture(params=["Celery's", "aioabort's", "Redis"])
def any_app(request: pytest.FixtureRequest, dsn: str, make_app: MakeApp) -> Celery:
    """An app with its results in each of the backends."""
    if request.param == "Redis":
        app: Celery = request.getfixturevalue("redis_app")
        return app
    app = make_app(dsn)
    if request.param == "aioabort's":
        app.conf.result_backend = f"aioabort+{dsn}"
    return app


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "STARTED", "RETRY", "REVOKED"])
async def test_the_row_decides_under_its_lock(
    database_app: Celery, dsn: str, state: str
) -> None:
    """What the other run commits just before counts, even if no poll has seen it.

    other run: writes its state, holds the lock | this run: waits to store REVOKED |
    other run: commits | this run: reads the state of the other run
    """
    backend: Any = database_app.backend
    await end(database_app, "task", {}, states.STARTED)
    context = Context(id="task")
    async with await psycopg.AsyncConnection.connect(dsn) as other:
        await other.execute(STORE, [state])
        storing = asyncio.create_task(
            to_thread.run_sync(store_revoked, backend, context, ABORTED)
        )
        async with await psycopg.AsyncConnection.connect(
            dsn, autocommit=True
        ) as watcher:

            async def is_blocked() -> bool:
                [count] = await (await watcher.execute(BLOCKED)).fetchone() or [0]
                return bool(count)

            await until(is_blocked)
        await other.commit()
        is_stored = await storing

    assert is_stored == (state not in {"SUCCESS", "FAILURE"})
    stored = backend.get_task_meta("task", cache=False)
    assert stored["status"] == ("REVOKED" if is_stored else state)
    if is_stored:
        assert isinstance(stored["result"], TaskAborted)


def test_a_task_without_a_row_ends_as_revoked(any_app: Celery) -> None:
    """Without ``task_track_started``, the first state of a task is its end."""
    task_id = str(uuid4())
    backend: Any = any_app.backend
    assert store_revoked(backend, Context(id=task_id), ABORTED)
    assert backend.get_state(task_id) == states.REVOKED
    assert isinstance(backend.get_result(task_id), TaskAborted)


@pytest.mark.parametrize("result", [7, ValueError("its own")])
async def test_the_other_run_ends_first(any_app: Celery, result: Any) -> None:
    """The aborted run leaves the result alone, and says that the abort came too late.

    both runs: polled | abort | other run: stores its result | this run: stops
    """
    task_id = str(uuid4())
    state = states.FAILURE if isinstance(result, Exception) else states.SUCCESS

    @any_app.task(bind=True, base=AbortableTask, shared=False, name="twice")
    def task(self: "AbortableTask[..., Any]") -> None:
        self.update_state(state="BEGUN")
        assert self.abort_token.wait(BOUND)
        self.backend.store_result(task_id, result, state)
        self.raise_if_aborted()

    async with AbortClient(any_app) as client:
        running = asyncio.create_task(asyncio.to_thread(run(any_app, task, task_id)))

        async def has_begun() -> bool:
            return (await client.snapshot(task_id)).state == "BEGUN"

        await until(has_begun)
        receipt = await client.abort(task_id)
        await running
        assert await receipt.settled(BOUND) == "too_late"
        snapshot = await client.snapshot(task_id)
        assert snapshot.state == state
        assert str(snapshot.result) == str(result)


def run(app: Celery, task: Any, task_id: str) -> Callable[[], None]:
    """Return a function that runs *task* as a worker does."""
    request: dict[str, Any] = {
        "id": task_id,
        "hostname": "worker@host",
        "is_eager": False,
        "args": (),
        "kwargs": {},
        "callbacks": None,
    }
    return lambda: trace_task(task, task_id, (), {}, request, app=app) and None


class Pool:
    """A pool whose child another run of the task outlives."""

    def __init__(self, before_kill: Callable[[], None]) -> None:
        self._before_kill = before_kill

    def terminate_job(self, *_: object) -> None:
        """Kill no child."""
        self._before_kill()


def request_of(app: Celery, task: Any, task_id: str) -> Any:
    """Return what the main process of a worker has of a task that a child runs."""
    with app.connection_for_write() as connection:
        task.apply_async(task_id=task_id, connection=connection, queue="final")
        queue: Any = app.amqp.queues["final"]
        message = queue(connection.default_channel).get(accept=["json"])
    request: Any = AbortableRequest(message, app=app, task=task, hostname="w@host")
    request.time_start = 1.0
    return request


@pytest.mark.parametrize("other", [states.FAILURE, states.SUCCESS, states.STARTED])
def test_the_other_run_ends_before_this_one_is_killed(
    any_app: Celery, other: str
) -> None:
    """Celery's ``terminate`` does not replace its result by REVOKED.

    other run: stores its result | the main process: SIGTERM to this run, REVOKED
    """
    task_id = str(uuid4())

    @any_app.task(base=AbortableTask, shared=False, name="killed")
    def task() -> None: ...

    result = ValueError("its own") if other == states.FAILURE else {}
    request = request_of(any_app, task, task_id)
    request.terminate(Pool(lambda: task.backend.store_result(task_id, result, other)))
    assert recorder.wait(BOUND)

    stays = other != states.STARTED
    assert any_app.backend.get_state(task_id) == (other if stays else states.REVOKED)


@pytest.mark.parametrize("is_requested", [True, False])
async def test_retry_is_stored_after_a_revoke(
    any_app: Celery, is_requested: bool
) -> None:
    """The retry was discarded, so nothing but REVOKED would end the wait.

    child: publishes the retry | main process: discards it, REVOKED | child: RETRY |
    main process: learns that from the child, REVOKED
    """
    task_id = str(uuid4())

    @any_app.task(base=AbortableTask, shared=False, name="again")
    def task() -> None: ...

    request = request_of(any_app, task, task_id)
    retry = Retry("again", when=1)
    async with AbortClient(any_app) as client:
        receipt = await client.abort(task_id) if is_requested else None
        task.backend.mark_as_revoked(task_id, "revoked", request=request._context)
        task.backend.store_result(task_id, retry, states.RETRY)
        worker_state.revoked.add(task_id)
        try:
            request.on_failure(info_of(retry), return_ok=True)
            with pytest.raises(TaskRevokedError):
                await client.wait(task_id, BOUND)
            assert receipt is None or await receipt.settled(BOUND) == "aborted"
        finally:
            worker_state.revoked.discard(task_id)
    assert task.backend.get_state(task_id) == states.REVOKED


def info_of(error: Exception) -> ExceptionInfo:
    """Return what a child sends to the main process when its task raises *error*."""
    try:
        raise error  # noqa: TRY301
    except Exception:  # noqa: BLE001
        return ExceptionInfo()


def test_a_retry_that_is_not_revoked_goes_on(redis_app: Celery) -> None:
    """Its RETRY is left alone."""
    task_id = str(uuid4())

    @redis_app.task(base=AbortableTask, shared=False, name="again")
    def task() -> None: ...

    request = request_of(redis_app, task, task_id)
    task.backend.store_result(task_id, ValueError(), states.RETRY)
    request.on_failure(info_of(Retry("again", when=1)), return_ok=True)
    assert recorder.wait(BOUND)
    assert task.backend.get_state(task_id) == states.RETRY


def test_the_backend_is_away_when_a_run_is_killed(
    redis_app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    """Celery stores its end, if it can: the worker goes on as without us."""
    task_id = str(uuid4())

    @redis_app.task(base=AbortableTask, shared=False, name="killed")
    def task() -> None: ...

    backend: Any = task.backend
    request = request_of(redis_app, task, task_id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "get_task_meta", fail)
        request.terminate(Pool(lambda: None))
    assert recorder.wait(BOUND)
    assert "could not be stored" in caplog.text
    assert backend.get_state(task_id) == states.REVOKED


def fail(*_: object, **__: object) -> None:
    """Be away."""
    raise ConnectionError("away")
