"""``aioabort.testing``, as the tests of a user use it."""

import asyncio
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, Task, current_task, shared_task
from celery.exceptions import Retry

from aioabort import AbortableTask, TaskAborted, current_token
from aioabort.testing import abortable_run
from tests.support.waiting import BOUND


def define(app: Celery, body: Callable[..., Any], **options: Any) -> Any:
    """Make *body* a task of *app* that is bound to its first argument."""
    return app.task(bind=True, base=AbortableTask, shared=False, **options)(body)


def count_checks(self: Any, how: str) -> int:
    """Check five times at most, and return how many checks were False."""
    check: dict[str, Callable[[], bool]] = {
        "task": self.is_aborted,
        "task_with_id": lambda: self.is_aborted(task_id=self.request.id),
        "token": self.abort_token.is_aborted,
        "flag": lambda: current_token().aborted,
        "wait": lambda: self.abort_token.wait(0),
    }
    for number in range(5):
        if check[how]():
            return number
    return 5


@pytest.mark.parametrize("how", ["task", "task_with_id", "token", "flag", "wait"])
def test_abort_after_so_many_checks(app: Celery, how: str) -> None:
    """So many checks are False, and the next one is True, however the body checks."""
    with abortable_run(define(app, count_checks)) as run:
        run.abort_after(checks=2)
        ended = run(how)

    assert ended.value == 2
    assert ended.checks == 3
    assert ended.seen == (how != "flag")
    assert ended.outcome == ("returned" if how != "flag" else "too_late")
    assert not ended.aborted


def test_without_an_abort(app: Celery) -> None:
    """The body runs to its end, and there is no request to have an outcome."""
    with abortable_run(define(app, count_checks)) as run:
        ended = run("task")

    assert (ended.value, ended.outcome, ended.seen, ended.checks) == (5, None, False, 5)


def test_abort_by_exception(app: Celery) -> None:
    """TaskAborted ends the run as it ends a task, and does not reach the test."""
    seen: list[TaskAborted] = []

    def body(self: Any) -> None:
        while True:
            try:
                self.raise_if_aborted()
            except TaskAborted as error:
                seen.append(error)
                raise

    with abortable_run(define(app, body)) as run:
        run.abort_after(checks=3, reason="why", requested_by="ann")
        ended = run()

    assert ended.aborted
    assert ended.outcome == "aborted"
    assert ended.checks == 4
    assert (seen[0].reason, seen[0].requested_by) == ("why", "ann")
    assert seen[0].task_id == run.token.task_id


def test_abort_at_an_item(app: Celery) -> None:
    """The body has the item to work on, and gets no other."""
    taken: list[str] = []

    def body(self: Any, items: str) -> None:
        taken.extend(self.until_aborted(items))
        self.raise_if_aborted()

    with abortable_run(define(app, body)) as run:
        run.abort_at(item=2, reason="why")
        ended = run("abcd")

    assert taken == ["a", "b"]
    assert ended.aborted
    assert run.token.request is not None
    assert run.token.request.reason == "why"


def test_abort_before_the_body(app: Celery) -> None:
    """As in a worker, the body never runs."""
    entered = threading.Event()

    def body(_: Any) -> None:
        entered.set()

    with abortable_run(define(app, body)) as run:
        run.abort()
        ended = run()

    assert ended.aborted
    assert not entered.is_set()


def test_abort_by_what_the_body_calls(app: Celery) -> None:
    """A fake may abort the run that calls it."""

    def body(self: Any, fetch: Callable[[], None]) -> str:
        fetch()
        return "stopped" if self.is_aborted() else "went on"

    with abortable_run(define(app, body)) as run:
        ended = run(run.abort)

    assert ended.value == "stopped"


def test_abort_that_the_body_does_not_check(app: Celery) -> None:
    """The value is kept, and the outcome says that the abort was not seen."""

    def body(_: Any, fetch: Callable[[], None]) -> str:
        fetch()
        return "done"

    with abortable_run(define(app, body)) as run:
        ended = run(run.abort)

    assert (ended.value, ended.outcome, ended.seen) == ("done", "too_late", False)


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_interrupted_body(app: Celery, in_main_thread: bool) -> None:
    """``abort_mode="raise"`` interrupts a body that never checks."""

    def body(_: Any, entered: threading.Event) -> None:
        entered.set()
        deadline = time.monotonic() + BOUND
        while time.monotonic() < deadline:
            time.sleep(0.001)

    with abortable_run(define(app, body, abort_mode="raise")) as run:
        entered = threading.Event()
        aborting = threading.Thread(target=lambda: entered.wait(BOUND) and run.abort())
        aborting.start()
        if in_main_thread:
            ended = run(entered)
        else:
            # Threads do not inherit the block's context.
            results: list[Any] = []
            running = threading.Thread(target=lambda: results.append(run(entered)))
            running.start()
            running.join()
            [ended] = results
        aborting.join()

    assert ended.aborted


def test_cancelled_coroutine(app: Celery) -> None:
    """An abort cancels a coroutine, which may await while it cleans up."""
    cleaned_up = threading.Event()

    async def body(_: Any, entered: Callable[[], None]) -> None:
        entered()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.set()

    with abortable_run(define(app, body)) as run:
        ended = run(run.abort)

    assert ended.aborted
    assert cleaned_up.is_set()


async def test_coroutine_from_a_coroutine(app: Celery) -> None:
    """A test that is a coroutine itself runs the body from a thread."""

    async def body(self: Any, number: int) -> tuple[int, bool, bool]:
        await asyncio.sleep(0)
        return (
            number * 2,
            self.request.id == self.abort_token.task_id,
            self.is_aborted(),
        )

    with abortable_run(define(app, body)) as run:
        ended = await asyncio.to_thread(run, 21)

    assert ended.value == (42, True, False)


def test_progress_is_kept_and_counts_as_no_check(app: Celery) -> None:
    """The states that the body stores are kept; after the abort, it stores no more."""

    def body(self: Any) -> None:
        for number in range(4):
            self.update_state(state="PROGRESS", meta={"number": number})
            self.is_aborted()

    with abortable_run(define(app, body)) as run:
        run.abort_after(checks=1)
        ended = run()

    assert ended.checks == 2
    assert ended.states == (
        ("PROGRESS", {"number": 0}),
        ("PROGRESS", {"number": 1}),
    )


def test_own_error_reaches_the_test(app: Celery) -> None:
    """What the body raises is raised, with its traceback."""

    def body(self: Any) -> None:
        if self.is_aborted():
            raise ValueError("stopped in the middle")

    with abortable_run(define(app, body)) as run:
        run.abort_after(checks=0)
        with pytest.raises(ValueError, match="stopped in the middle"):
            run()

    assert run.token.seen


def test_retry_is_not_sent(app: Celery) -> None:
    """``retry()`` raises what it raises in a worker, without a broker."""

    def body(self: Any) -> None:
        raise self.retry(countdown=7)

    with abortable_run(define(app, body)) as run, pytest.raises(Retry) as raised:
        run()

    assert raised.value.when == 7


def test_retry_of_an_aborted_run(app: Celery) -> None:
    """It ends instead, as in a worker."""

    def body(self: Any) -> None:
        raise self.retry()

    with abortable_run(define(app, body)) as run:
        run.abort_after(checks=0)
        assert run().aborted


def test_autoretry_leaves_the_abort_alone(app: Celery) -> None:
    """The abort is no error that causes a retry."""

    def body(self: Any) -> None:
        self.raise_if_aborted()

    task = define(app, body, autoretry_for=(Exception,))
    with abortable_run(task) as run:
        run.abort_after(checks=0)
        assert run().aborted


def test_body_finds_itself(app: Celery) -> None:
    """The request and the current task are there, as in a worker."""

    def body(self: Any, one: int, *, two: int) -> tuple[Any, ...]:
        assert (list(self.request.args), self.request.kwargs) == ([one], {"two": two})
        return self.request.id, current_task.name

    task = define(app, body, name="named")
    with abortable_run(task) as run:
        ended = run(1, two=2)

    assert ended.value == (run.token.task_id, "named")
    assert not current_task


def test_helper_function_alone(app: Celery) -> None:
    """A function that finds the token by itself can be tested without the task."""

    def helper() -> str:
        return "stopped" if current_token().is_aborted() else "went on"

    with abortable_run(define(app, count_checks)) as run:
        assert helper() == "went on"
        run.abort()
        assert helper() == "stopped"

    assert helper() == "went on"


def test_nothing_is_left_in_the_task(app: Celery) -> None:
    """After the run, the task is as it was, for another run and for a worker."""
    task = define(app, count_checks)
    # Makes Celery keep an empty request in the task, as it does when there is none.
    assert not task.request.id
    before = dict(vars(app.tasks[task.name]))
    with abortable_run(task) as run:
        run("task")

    assert vars(app.tasks[task.name]) == before
    assert not task.request.id
    assert task("task") == 5


def test_custom_call_of_the_task(app: Celery) -> None:
    """``__call__`` is called if the user defines it, and handlers are not."""
    called: list[str] = []

    class InContext(AbortableTask[..., Any]):
        abstract = True

        def __call__(self, *args: Any) -> Any:
            called.append("call")
            return self.run(*args)

        def after_return(self, *_: object) -> None:
            called.append("after_return")

    @app.task(bind=True, base=InContext, shared=False)
    def body(self: Any) -> None:
        self.raise_if_aborted()

    with abortable_run(body) as run:
        run.abort_after(checks=0)
        assert run().aborted
    assert called == ["call"]


def test_shared_task(app: Celery) -> None:
    """``@shared_task`` returns a proxy."""

    @shared_task(bind=True, base=AbortableTask, name="tests.shared_by_apps")
    def body(self: Any) -> bool:
        return self.is_aborted()

    app.set_current()
    with abortable_run(body) as run:
        run.abort_after(checks=0)
        assert run().value is True


def test_second_call_is_refused(app: Celery) -> None:
    """A token is aborted once; a second run needs another."""
    with abortable_run(define(app, count_checks)) as run:
        run("task")
        with pytest.raises(RuntimeError, match="another"):
            run("task")


def test_other_tasks_are_refused(app: Celery) -> None:
    """The error names the task and what it is not."""
    plain = app.task(base=Task, shared=False, name="plain")(define)
    with (
        pytest.raises(TypeError, match="plain is no AbortableTask"),
        abortable_run(plain),
    ):
        pass


def test_impossible_moments_are_refused(app: Celery) -> None:
    """The first check has the number 0, and the first item the number 1."""
    with abortable_run(define(app, count_checks)) as run:
        with pytest.raises(ValueError, match="checks"):
            run.abort_after(checks=-1)
        with pytest.raises(ValueError, match="item"):
            run.abort_at(item=0)
        with pytest.raises(ValueError, match="checks"):
            run.abort_after(checks=math.nan)  # type: ignore[arg-type]
