"""What Celery tests of celery.contrib.abortable, with ``abort()`` awaited."""

from collections.abc import Iterator

import pytest
from celery import Celery, signals

from aioabort import AbortableAsyncResult, AbortableTask


@pytest.fixture
def abortable(app: Celery) -> Iterator[AbortableTask]:
    """A task that no worker runs, with its context pushed as if one did."""

    @app.task(base=AbortableTask, shared=False)
    def abortable() -> bool:
        return True

    abortable.push_request()
    yield abortable
    abortable.pop_request()
    # What a worker sends when it stops, so that its connections are closed.
    signals.worker_shutdown.send(sender=None)


async def test_async_result_is_abortable(abortable: AbortableTask) -> None:
    """A task's results are of the class that can be aborted."""
    result = abortable.apply_async()

    assert isinstance(result, AbortableAsyncResult)
    assert isinstance(abortable.AsyncResult(result.id), AbortableAsyncResult)


async def test_is_not_aborted(abortable: AbortableTask) -> None:
    """A task without an abort request is not aborted."""
    result = abortable.apply_async()

    assert not abortable.is_aborted(task_id=result.id)


async def test_is_aborted_not_abort_result(
    abortable: AbortableTask, app: Celery
) -> None:
    """With results of Celery's own class, no task is aborted."""
    result = abortable.apply_async()
    await result.abort()
    abortable.AsyncResult = app.AsyncResult
    abortable.request.id = "foo"

    assert not abortable.is_aborted()
    assert not abortable.is_aborted(task_id=result.id)


async def test_abort_yields_aborted(abortable: AbortableTask) -> None:
    """An abort is seen at once, also by a process that does not run the task."""
    result = abortable.apply_async()
    await result.abort()

    assert abortable.is_aborted(task_id=result.id)
    assert await result.is_aborted()
    assert result.state == "ABORTED"


async def test_is_aborted_outside_of_a_task(app: Celery) -> None:
    """A task that is called as a function, as in a unit test, is not aborted."""

    @app.task(bind=True, base=AbortableTask, shared=False)
    def looking(self: AbortableTask) -> bool:
        return self.is_aborted()

    assert looking() is False
    assert looking.apply().get() is False
