"""What is stored again after an error, and what is not."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery, signals, states
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from aioabort import TaskAborted
from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.models import TaskRow
from aioabort.reconnect import may_pass
from aioabort.timing import Timing
from aioabort.worker import shutdown
from aioabort.worker.execution.retry_race import restore_after_retry
from aioabort.worker.execution.store_retry import TRIES, store_with_retries
from aioabort.worker.final_state import restore_revoked
from aioabort.worker.run import Run
from aioabort.worker.shutdown import is_shutting_down
from tests.support.runs import PENDING, RecordingSupervisor

TIMING = Timing(store_retry_first=0.001)


class OfADriver(Exception):
    """The base class of a driver's errors."""


class DatabaseAway(OfADriver):
    """The server is away."""


class ProgrammingError(OfADriver):
    """The table is missing."""


class Backend:
    """Answers with *error*, or with the state RETRY."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def get_task_meta(self, _: str, cache: bool) -> dict[str, Any]:
        assert not cache
        if self.error is not None:
            raise self.error
        return {"status": states.RETRY}


class Store:
    """Fails with each of *errors*, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.calls = 0
        self._errors = list(errors)

    def __call__(self) -> str:
        self.calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return "stored"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError(),
        TimeoutError(),
        EOFError(),
        DatabaseAway(),
        OperationalError(),
        StoreUnavailable(),
    ],
)
def test_what_may_pass(error: Exception) -> None:
    """An outage; each library has its own errors for one."""
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        TypeError(),
        KeyError(),
        UnicodeEncodeError("utf-8", "", 0, 1, ""),
        NotImplementedError(),
        ProgrammingError(),
        StoreError(),
    ],
)
def test_what_does_not_pass(error: Exception) -> None:
    """A bug or a refusal: it is raised at once, even if the backend seems to be away."""
    assert not may_pass(error)
    store = Store(error)
    with pytest.raises(type(error)):
        store_with_retries(Backend(DatabaseAway()), "id", store, TIMING)
    assert store.calls == 1


def test_an_outage_is_outlasted() -> None:
    """However many tries that takes, while the backend cannot be read, either."""
    store = Store(*[DatabaseAway()] * (2 * TRIES))
    backend = Backend(DatabaseAway())
    assert store_with_retries(backend, "id", store, TIMING) == "stored"


def test_a_backend_that_answers_is_tried_three_times() -> None:
    """The first errors may be the last ones of an outage."""
    store = Store(*[DatabaseAway()] * (2 * TRIES))
    with pytest.raises(DatabaseAway):
        store_with_retries(Backend(), "id", store, TIMING)
    assert store.calls == TRIES


def test_a_backend_whose_answer_is_a_bug_answers() -> None:
    """A bug in reading says nothing of an outage."""
    store = Store(*[DatabaseAway()] * (2 * TRIES))
    with pytest.raises(DatabaseAway):
        store_with_retries(Backend(TypeError()), "id", store, TIMING)
    assert store.calls == TRIES


def test_a_soft_time_limit_ends_the_tries() -> None:
    """While it is stored, and while the backend is read."""
    for backend, store in [
        (Backend(), Store(SoftTimeLimitExceeded())),
        (Backend(SoftTimeLimitExceeded()), Store(DatabaseAway())),
    ]:
        with pytest.raises(SoftTimeLimitExceeded):
            store_with_retries(backend, "id", store, TIMING)
        assert store.calls == 1


@pytest.fixture
def worker_init() -> Iterator[Callable[[], None]]:
    """Begin as the main process of a worker, before it forks."""
    yield lambda: signals.worker_init.send(sender=None) and None
    shutdown._flag = None


def test_a_shutdown_ends_the_tries(worker_init: Callable[[], None]) -> None:
    """During an outage of ten minutes, a worker shuts down soon."""
    worker_init()

    class ShutsDown(Store):
        def __call__(self) -> str:
            if self.calls == 2 * TRIES:
                signals.worker_shutting_down.send(sender="w@h")
            return super().__call__()

    store = ShutsDown(*[DatabaseAway()] * (5 * TRIES))
    with pytest.raises(DatabaseAway):
        store_with_retries(Backend(DatabaseAway()), "id", store, TIMING)
    assert store.calls == 3 * TRIES


def test_children_learn_of_a_shutdown(worker_init: Callable[[], None]) -> None:
    """Also those that were forked before, and run a task."""
    assert not is_shutting_down()
    worker_init()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(writer)
        os.read(reader, 1)
        os._exit(is_shutting_down())
    os.close(reader)
    assert not is_shutting_down()
    signals.worker_shutting_down.send(sender="w@h")
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


@pytest.mark.parametrize("backend", ["rpc://", "disabled://"])
def test_a_backend_that_cannot_be_read(backend: str) -> None:
    """Nothing is restored in it, and nothing is read: ``rpc://`` is a queue of replies."""
    app = Celery("app", broker="memory://", backend=backend, set_as_current=False)
    assert not restore_revoked(app.backend, Context(id="id"), TaskAborted())
    store = Store(*[DatabaseAway()] * (2 * TRIES))
    assert store_with_retries(app.backend, "id", store, TIMING) == "stored"


class Settled(RecordingSupervisor):
    """Finds that the retry was aborted and settled."""

    def poll_again(self, _: Run) -> Any:
        request = replace(PENDING, outcome="aborted")
        return TaskRow(task_id="id", request=request)


def test_what_cannot_be_restored_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The slot is free at once, and the log says what is wrong."""
    run = Run(Context(id="id", hostname="w@h"), Settled(TIMING))
    run.abort(PENDING)

    class Task:
        backend = Backend(TypeError("a bug"))

    task: Any = Task()
    restore_after_retry(task, Context(id="id"), run)
    assert "may be RETRY for ever" in caplog.text
    assert "a bug" in caplog.text
