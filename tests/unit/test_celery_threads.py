"""Contracts of the private names of Celery that aioabort uses."""

import threading
from collections.abc import Iterator

import pytest
from celery import Celery, Task, current_task
from celery.app.task import Context
from celery.utils.threads import get_ident

from aioabort.celery_compat import (
    OWN_BACKEND,
    current_task_set_to,
    identify_threads_by,
    own_backend,
)


@pytest.fixture
def task() -> Task:
    """A task without services."""
    app = Celery("tests", broker="memory://", backend="cache+memory://")

    @app.task(shared=False, lazy=False, name="contracts")
    def contracts() -> None: ...

    return contracts  # type: ignore[no-any-return]


class TestStacks:
    """Celery finds ``current_task`` and ``task.request`` by the ident of the thread."""

    @pytest.fixture(autouse=True)
    def usual_ident(self, task: Task) -> Iterator[None]:
        """Celery's own ident after each test: one stack is global."""
        yield
        identify_threads_by(get_ident, task)

    def test_current_task(self, task: Task) -> None:
        """The task is the current one in the block, and not after it."""
        with current_task_set_to(task):
            assert current_task.name == "contracts"
        assert not current_task

    def test_another_thread_with_the_same_ident(self, task: Task) -> None:
        """A thread finds the task and the request of the thread whose ident it has."""
        ident = get_ident()
        identify_threads_by(lambda: ident, task)
        found: list[str] = []

        def find() -> None:
            found.extend([current_task.name, task.request.id])

        with current_task_set_to(task):
            task.push_request(**vars(Context(id="a")))
            thread = threading.Thread(target=find)
            thread.start()
            thread.join()
            task.pop_request()
        assert found == ["contracts", "a"]


class TestOwnBackend:
    """A task may have a backend that is not its app's."""

    def test_backend_of_the_app(self, task: Task) -> None:
        """It is not taken for the task's own."""
        assert task.backend is task.app.backend
        assert own_backend(task) is None

    def test_backend_of_the_task(self, task: Task) -> None:
        """It is found where the setter of ``backend`` puts it."""
        backend = object()
        task.backend = backend
        assert own_backend(task) is backend
        assert vars(task)[OWN_BACKEND] is backend
