"""Tasks that run eagerly, as in their users' own tests: no worker, no database."""

import logging
from functools import partial
from typing import Any

import pytest
from anyio import fail_after
from celery import Celery, chain, group, signals

from aioabort import (
    AbortableAsyncResult,
    AbortableTask,
    TaskAborted,
    current_token,
)

events: list[str] = []


class Watched(AbortableTask):
    """Notes which of Celery's hooks are called."""

    abstract = True

    def on_failure(self, *_: object) -> None:
        """Note the error, as Sentry would."""
        events.append("on_failure")

    def after_return(self, status: str, *_: object) -> None:
        """Note the state."""
        events.append(f"after_return {status}")


@pytest.fixture
def eager() -> Celery:
    """An app that runs its tasks at once, with a broker that does not exist."""
    events.clear()
    app = Celery(
        "eager",
        broker="redis://nowhere.invalid",
        backend="cache+memory://",
        set_as_current=False,
    )
    app.conf.task_always_eager = True
    task = partial(app.task, shared=False)

    @task(name="add", base=AbortableTask)
    def add(*numbers: int) -> int:
        return sum(numbers)

    @task(name="stop", base=Watched, bind=True, autoretry_for=(Exception,))
    def stop(_: AbortableTask, why: str) -> None:
        events.append("body")
        raise TaskAborted(why)

    @task(name="fail", base=Watched)
    def fail() -> None:
        raise ValueError("broken")

    @task(name="check", base=AbortableTask, bind=True)
    def check(self: AbortableTask) -> list[int]:
        self.raise_if_aborted()
        with self.abort_token.shield(), self.abort_token.on_abort(pytest.fail):
            assert not self.is_aborted()
            assert not current_token().wait(0)
        return list(self.until_aborted([1, 2]))

    @task(name="double", base=AbortableTask, bind=True)
    async def double(self: AbortableTask, number: int) -> int:
        assert self.request.is_eager
        return number * 2

    @task(name="stop_async", base=Watched)
    async def stop_async() -> None:
        raise TaskAborted("enough")

    @task(name="outer", base=AbortableTask)
    async def outer(number: int) -> Any:
        # Blocks its own loop, as everything that runs eagerly does.
        return double.delay(number).get(disable_sync_subtasks=False)

    @task(name="again", base=AbortableTask, bind=True)
    def again(self: AbortableTask) -> int:
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return self.request.retries

    return app


async def test_result_of_delay(eager: Celery) -> None:
    """It can be aborted and awaited like any other; it just has ended already."""
    result = eager.tasks["add"].delay(1, 2)

    assert isinstance(result, AbortableAsyncResult)
    assert result.get() == 3
    assert await result == 3
    assert await result.wait(0) == 3
    receipt = await result.abort(reason="too late", requested_by="ann")
    assert (receipt.task_id, receipt.answer, receipt.state) == (
        result.id,
        "finished",
        "SUCCESS",
    )
    assert not await result.is_aborted()
    snapshot = await result.snapshot()
    assert (snapshot.state, snapshot.result) == ("SUCCESS", 3)
    assert snapshot.is_finished


@pytest.mark.parametrize(("name", "args"), [("stop", ["enough"]), ("stop_async", [])])
async def test_task_that_stops(eager: Celery, name: str, args: list[str]) -> None:
    """TaskAborted ends it as REVOKED: no failure, no retry, and its waiters get it."""
    result = eager.tasks[name].delay(*args)

    assert result.state == "REVOKED"
    with pytest.raises(TaskAborted, match="enough"):
        result.get()
    with pytest.raises(TaskAborted, match="enough"):
        await result
    assert await result.is_aborted()
    assert (await result.snapshot()).is_aborted
    assert [event for event in events if event != "body"] == ["after_return REVOKED"]
    assert events.count("body") <= 1


def test_errors_that_propagate(eager: Celery) -> None:
    """With ``task_eager_propagates``, who sends the task gets the exception."""
    eager.conf.task_eager_propagates = True
    with pytest.raises(TaskAborted, match="enough"):
        eager.tasks["stop"].delay("enough")
    eager.conf.task_eager_propagates = False
    with pytest.raises(TaskAborted, match="enough"):
        eager.tasks["stop"].apply(["enough"], throw=True)
    assert "on_failure" not in events


async def test_task_that_fails(eager: Celery) -> None:
    """An error remains one."""
    result = eager.tasks["fail"].delay()
    assert result.state == "FAILURE"
    with pytest.raises(ValueError, match="broken"):
        await result
    assert not await result.is_aborted()
    assert "broken" in str((await result.snapshot()).traceback)
    assert events == ["on_failure", "after_return FAILURE"]


def test_errbacks(eager: Celery) -> None:
    """``link_error`` is called for a task that stops, as for one that fails."""
    called: list[str] = []

    @eager.task(name="errback", shared=False)
    def errback(_request: object, error: Exception, _traceback: object) -> None:
        called.append(str(error))

    eager.tasks["stop"].apply(["enough"], link_error=errback.s())
    assert called == ["The task was aborted: enough"]


def test_canvas(eager: Celery) -> None:
    """The chain ends with the task that stops; a group's other tasks do not."""
    add, stop = eager.tasks["add"], eager.tasks["stop"]
    assert chain(add.s(1), add.s(2)).delay().get() == 3
    with pytest.raises(TaskAborted, match="enough"):
        chain(stop.si("enough"), add.si(1)).delay()

    results = group(add.s(1), stop.s("enough")).delay()
    assert [result.state for result in results] == ["SUCCESS", "REVOKED"]


def test_what_the_body_can_do(eager: Celery, caplog: pytest.LogCaptureFixture) -> None:
    """Checks, sleeps and shields work, find no abort, and connect to nothing."""
    with caplog.at_level(logging.WARNING):
        assert eager.tasks["check"].delay().get() == [1, 2]
    assert caplog.records == []


async def test_coroutine(eager: Celery) -> None:
    """An ``async def`` task runs to its end, also within a running loop."""
    assert await eager.tasks["double"].delay(21) == 42


async def test_coroutine_that_runs_another_task(eager: Celery) -> None:
    """A task that runs within another one's coroutine does not wait for itself."""
    with fail_after(10):
        assert await eager.tasks["outer"].delay(21) == 42


async def test_retry(eager: Celery) -> None:
    """The further attempts run at once, and the result is the last one's."""
    assert await eager.tasks["again"].delay() == 2


def test_no_signal_of_an_error(eager: Celery) -> None:
    """``task_failure``, by which Sentry knows of errors, is not sent."""
    sent: list[str] = []

    def on_failure(**_: object) -> None:
        sent.append("task_failure")

    def on_postrun(state: str, **_: object) -> None:
        sent.append(f"task_postrun {state}")

    signals.task_failure.connect(on_failure)
    signals.task_postrun.connect(on_postrun)
    eager.tasks["stop"].delay("enough")
    assert sent == ["task_postrun IGNORED"]
