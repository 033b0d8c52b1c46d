"""One task that ends in every way that Celery and the operating system know."""

import os
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from celery import Task, states
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.worker.request import Request
from marks import note, until, wait_for

from aioabort import AbortableTask


def _return(_: Task) -> str:
    return "done"


def _return_what_cannot_be_stored(_: Task) -> object:
    return object()


def _fail(_: Task) -> None:
    raise ValueError("own error")


def _fail_by_the_soft_limit(_: Task) -> None:
    raise SoftTimeLimitExceeded


def _fail_after_the_last_retry(task: Task) -> None:
    raise task.retry(exc=ValueError("own error"), max_retries=0)


def _retry_once(task: Task) -> str:
    if task.request.retries:
        return "done"
    raise task.retry(countdown=0)


def _ignore(_: Task) -> None:
    raise Ignore


def _ignore_after_progress(task: Task) -> None:
    task.backend.store_result(task.request.id, {"at": 1}, "PROGRESS")
    raise Ignore


def _ignore_after_an_end(task: Task) -> None:
    task.backend.store_result(task.request.id, ValueError("own"), states.FAILURE)
    raise Ignore


def _reject(_: Task) -> None:
    raise Reject


def _stop(task: Any) -> str:
    task.raise_if_aborted()
    return "done"


def _exit(_: Task) -> None:
    raise SystemExit(3)


def _exit_at_once(_: Task) -> None:
    os._exit(3)


def _be_killed(_: Task) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _exceed_the_hard_limit(_: Task) -> None:
    time.sleep(60)


#: Each function ends the task from which it is called. None raises MemoryError: that
#: ends the thread in which Celery's main process handles results.
WAYS: dict[str, Callable[[Task], object]] = {
    way.__name__.strip("_"): way
    for way in (
        _return,
        _return_what_cannot_be_stored,
        _fail,
        _fail_by_the_soft_limit,
        _fail_after_the_last_retry,
        _retry_once,
        _ignore,
        _ignore_after_progress,
        _ignore_after_an_end,
        _reject,
        _stop,
        _exit,
        _exit_at_once,
        _be_killed,
        _exceed_the_hard_limit,
    )
}

#: Seconds; only for the way that needs it.
HARD_LIMIT = 2


def _end(task: AbortableTask | Task, place: str, way: str, looks: bool) -> object:
    note(place, "body")
    if not getattr(task.request, "retries", 0):
        if looks:
            until(task.is_aborted)
        wait_for(place, "end")
    return WAYS[way](task)


class NotingRequest(Request):
    """Handles a time limit in the main process, as Celery's documentation shows."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Leave a mark."""
        super().on_timeout(soft, timeout)
        note(self.args[0], "timed out")


class WithNotingRequest(AbortableTask):
    """A task with a request class of the user's."""

    abstract = True
    Request: Any = NotingRequest


def define(task: Callable[..., Any]) -> SimpleNamespace:
    """Return the tasks of this module for the app whose decorator *task* is."""

    @task(bind=True)
    def ending(self: AbortableTask, place: str, way: str, looks: bool) -> object:
        """End in that *way*; *looks*: only after the abort was seen."""
        return _end(self, place, way, looks)

    @task(bind=True, base=Task)
    def plain_ending(self: Task, place: str, way: str) -> object:
        """End in that *way*, and know nothing of aborts."""
        return _end(self, place, way, looks=False)

    @task(bind=True, base=WithNotingRequest)
    def noting(self: AbortableTask, place: str, way: str, looks: bool) -> object:
        """End in that *way*, as ``ending()`` does."""
        return _end(self, place, way, looks)

    return SimpleNamespace(ending=ending, plain_ending=plain_ending, noting=noting)
