"""The methods of a task that call each other, and tasks that run others eagerly."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from celery import Celery

from aioabort import AbortableTask, TaskAborted
from aioabort.testing import abortable_run
from aioabort.testing.abortable_run import AbortableRun, RecordingBackend
from tests.support.waiting import BOUND

Task = Callable[..., Any]


@pytest.fixture
def app() -> Celery:
    """An app that no worker runs."""
    return Celery("wrapper", broker="memory://", set_as_current=False)


@pytest.fixture
def task(app: Celery) -> Task:
    """The decorator of abortable tasks."""
    return partial(app.task, base=AbortableTask, bind=True, shared=False, lazy=False)


def spin() -> None:
    """Compute without a check until an abort interrupts it."""
    deadline = time.monotonic() + BOUND
    while time.monotonic() < deadline:
        pass


def in_both(function: Callable[[Task], None]) -> Any:
    """Run the test in the main thread, which a signal interrupts, and in another one."""

    @pytest.mark.parametrize("thread", ["main", "other"])
    def test(task: Task, thread: str) -> None:
        if thread == "main":
            function(task)
            return
        errors: list[BaseException] = []

        def run() -> None:
            try:
                function(task)
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)

        other = threading.Thread(target=run)
        other.start()
        other.join(2 * BOUND)
        if errors:
            raise errors[0]

    test.__doc__ = function.__doc__
    return test


@in_both
def test_nested_call_leaves_the_outer_one_interruptible(task: Task) -> None:
    """An abort that comes after ``self.run()`` in the body interrupts the body."""

    @task(abort_mode="raise")
    def recursing(self: AbortableTask, depth: int) -> None:
        if depth == 0:
            return
        self.run(depth - 1)
        run.abort()
        spin()

    with abortable_run(recursing) as run:
        assert run(1).aborted


@in_both
def test_abort_in_a_nested_call(task: Task) -> None:
    """It ends the outer method, too, and interrupts nothing after that."""
    after: list[str] = []

    @task(abort_mode="raise")
    def recursing(self: AbortableTask, depth: int) -> None:
        if depth == 0:
            run.abort()
            spin()
        self.run(depth - 1)
        after.append("outer")

    with abortable_run(recursing) as run:
        assert run(1).aborted
    assert after == []


class SlowStore:
    """Stores an end, and is busy for a while after *run* has been aborted meanwhile."""

    run: AbortableRun[..., object]

    def __init__(self) -> None:
        self.begun = self.done = 0

    def __call__(self, *_: object, **__: object) -> None:
        """Abort the run, and go on for a tenth of a second."""
        self.begun += 1
        self.run.abort()
        end = time.monotonic() + 0.1
        while time.monotonic() < end:
            pass
        self.done += 1


@in_both
def test_end_of_a_nested_call_is_stored_undisturbed(task: Task) -> None:
    """An abort does not interrupt the backend while it stores how the inner call ended.

    inner: raises TaskAborted | backend: stores REVOKED | agent: aborted
    """
    store = SlowStore()

    @task(abort_mode="raise")
    def recursing(self: AbortableTask, depth: int) -> None:
        if depth == 0:
            raise TaskAborted("its own")
        self.run(depth - 1)

    with (
        abortable_run(recursing) as run,
        patch.object(RecordingBackend, "mark_as_failure", store),
    ):
        store.run = run
        assert run(1).aborted
    assert (store.begun, store.done) == (1, 1)


@in_both
def test_end_of_an_eager_subtask_is_stored_undisturbed(task: Task) -> None:
    """An abort of the caller does not interrupt the backend, but what comes after it.

    subtask: raises TaskAborted | backend: stores REVOKED | agent: aborts the caller
    """
    store = SlowStore()

    @task
    def inner(_: AbortableTask) -> None:
        raise TaskAborted("its own")

    @task(abort_mode="raise")
    def outer(_: AbortableTask) -> None:
        inner.apply()
        spin()

    with (
        abortable_run(outer) as run,
        patch.object(inner.backend, "mark_as_failure", store),
    ):
        store.run = run
        assert run().aborted
    assert store.begun == store.done


@in_both
def test_abort_in_an_eager_subtask(task: Task) -> None:
    """The abort of the calling task ends that task, not only the subtask."""
    calls: list[int] = []

    @task(abort_mode="raise")
    def inner(_: AbortableTask) -> None:
        run.abort()
        spin()

    @task(abort_mode="raise")
    def outer(_: AbortableTask) -> None:
        for number in range(3):
            calls.append(number)
            inner.apply()

    with abortable_run(outer) as run:
        assert run().aborted
    assert calls == [0]


def test_eager_subtask_of_a_cooperative_task(task: Task) -> None:
    """A subtask that checks stops alone: its caller is not interrupted."""

    @task
    def inner(self: AbortableTask) -> None:
        self.raise_if_aborted()

    @task
    def outer(_: AbortableTask) -> str:
        run.abort()
        return inner.apply().state

    with abortable_run(outer) as run:
        assert run().value == "REVOKED"


@pytest.mark.parametrize("call", ["library", "body"])
def test_outcome_of_a_swallowed_abort(task: Task, call: str) -> None:
    """``returned`` is for a body that could know of the abort."""

    def library() -> None:
        try:
            run.abort()
            spin()
        except Exception:  # noqa: BLE001 - as people write it
            pass

    @task(abort_mode="raise")
    def swallowing(_: AbortableTask) -> str:
        if call == "library":
            library()
            return "value"
        try:
            run.abort()
            spin()
        except TaskAborted:
            pass
        return "value"

    with abortable_run(swallowing) as run:
        ended = run()
    assert ended.value == "value"
    assert ended.outcome == ("too_late" if call == "library" else "returned")
    assert ended.seen == (call == "body")


def test_generator_is_no_coroutine(app: Celery) -> None:
    """A ``__call__()`` may iterate over a body that yields."""

    class Listing(AbortableTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> list[int]:
            return list(self.run(*args, **kwargs))

    @app.task(base=Listing, shared=False, lazy=False)
    def numbers(count: int) -> Iterator[int]:
        yield from range(count)

    with abortable_run(numbers) as run:
        assert run(3).value == [0, 1, 2]


def test_async_call(app: Celery) -> None:
    """``async def __call__()`` awaits the body, directly and by ``super()``."""

    class Timed(AbortableTask):
        abstract = True

        async def __call__(self, *args: Any, **kwargs: Any) -> list[Any]:
            nested = super().__call__
            return [await self.run(*args, **kwargs), await nested(*args, **kwargs)]

    @app.task(base=Timed, bind=True, shared=False, lazy=False)
    async def counting(self: AbortableTask, number: int) -> int:
        await asyncio.sleep(0)
        return number + (await self.run(number - 1) if number else 0)

    with abortable_run(counting) as run:
        assert run(3).value == [6, 6]
    assert counting.apply([2]).get() == [3, 3]


def test_abort_of_a_nested_coroutine(task: Task) -> None:
    """It is cancelled with the coroutine that awaits it, and both clean up."""
    cleaned: list[int] = []

    @task
    async def recursing(self: AbortableTask, depth: int) -> None:
        try:
            if depth == 0:
                run.abort()
                await asyncio.sleep(BOUND)
            await self.run(depth - 1)
        finally:
            await asyncio.sleep(0)
            cleaned.append(depth)

    with abortable_run(recursing) as run:
        assert run(1).aborted
    assert cleaned == [0, 1]


@in_both
def test_coroutine_leaves_the_outer_call_interruptible(task: Task) -> None:
    """An abort after a body that is a coroutine interrupts a ``__call__()`` that is not."""

    class Late(AbortableTask):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> None:
            assert self.run(*args, **kwargs) == "body"
            run.abort()
            spin()

    @task(base=Late, abort_mode="raise")
    async def body(_: AbortableTask) -> str:
        await asyncio.sleep(0)
        return "body"

    with abortable_run(body) as run:
        assert run().aborted


def test_sync_code_calls_a_nested_coroutine(task: Task) -> None:
    """A thread that a coroutine has started gets the value: it cannot await."""

    @task
    async def recursing(self: AbortableTask, depth: int) -> int:
        if depth == 0:
            return 0
        return 1 + await asyncio.to_thread(self.run, depth - 1)

    with abortable_run(recursing) as run:
        assert run(1).value == 1
