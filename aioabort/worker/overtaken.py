"""An end over which the run before it has stored RETRY.

Celery publishes a retry first, and then stores that the task is tried again. If the
retry is aborted in between, its end is erased, and whoever looks later waits for ever:

    retry published | retry begins, aborted, REVOKED stored | request settled | RETRY

So both runs look when they are done: each after all that it stores itself, so that one
of them sees what the other has done.
"""

import logging
from contextlib import suppress
from typing import Any

from celery import Task, states
from celery.app.task import Context

from aioabort.exceptions import TaskAborted
from aioabort.worker.outlast import outlast
from aioabort.worker.run import Run

logger: logging.Logger = logging.getLogger(__name__)


def after_retry(task: "Task[..., Any]", request: Context, run: Run) -> None:
    """Restore what *run* has erased, if the retry that it had published was aborted."""
    row = run.supervisor.look_again(run)
    # One that was settled before the run began is not about this publication.
    made = row.request if run.aborted and row is not None else None
    if made is not None and made.outcome == "aborted":
        _restore(task, request, made.error())


def end_retry(task: "Task[..., Any]", request: Context, run: Run) -> None:
    """End *run*, an aborted retry, and restore its end if that is erased already."""
    run.supervisor.end_now(run)
    if run.request is not None:
        _restore(task, request, run.request.error())


def _restore(task: "Task[..., Any]", request: Context, error: TaskAborted) -> None:
    """Store *error* again if RETRY is what is stored: what else an end does, is done."""
    backend, task_id = task.backend, request.id or ""

    def restore() -> None:
        # From elsewhere than the cache, which has the end.
        stored = backend.get_task_meta(task_id, cache=False)
        if stored["status"] == states.RETRY:
            logger.warning("Task %s: its end was erased by its retry", task_id)
            backend.store_result(task_id, error, states.REVOKED, request=request)

    with suppress(NotImplementedError):  # of a backend that stores nothing
        outlast(backend, task_id, restore)
