"""How a task that honours its abort ends: as REVOKED, for everything that waits on it.

ABORTED as a final state would make ``get()``, groups and chords wait for ever, and a
bare Ignore would leave the task STARTED.
"""

import logging
from functools import partial
from typing import Any, NoReturn, cast

from celery import Task, states
from celery.app.task import Context
from celery.exceptions import Ignore

from aioabort.exceptions import TaskAborted
from aioabort.worker.outlast import outlast
from aioabort.worker.run import Run
from aioabort.worker.workflow import end_what_follows, without_what_follows

logger: logging.Logger = logging.getLogger(__name__)


class AbortHonoured(Ignore):
    """Tells Celery that the end of this task is stored already."""


def finish_aborted(
    task: "Task[..., Any]",
    request: Context,
    error: TaskAborted,
    run: Run | None = None,
) -> NoReturn:
    """Store *error* as REVOKED, stop the chain, fail the chord; then end the run.

    A result that is already stored is left alone: a redelivery of a finished run.
    Without a *run*, the task runs eagerly.
    """
    state = run.state if run is not None else None
    if state not in {states.SUCCESS, states.FAILURE}:
        if run is not None:
            # First: if the process dies before the end of the task is stored, the
            # redelivery does it again.
            run.followers = end_what_follows(task.backend, request, error)
        is_stored = state == states.REVOKED
        store = partial(
            task.backend.mark_as_failure,
            request.id or "",
            error,
            request=without_what_follows(request),
            state=states.REVOKED,
            store_result=not is_stored and _stores_result(task, request, run),
            call_errbacks=not is_stored,
        )
        outlast(task.backend, request.id or "", store)
    if run is not None:
        run.honoured = True
    _after_return(task, request, error)
    raise AbortHonoured(str(error)) from error


def end_instead_of_retry(task: "Task[..., Any]", run: Run) -> None:
    """End an aborted run that wants to be tried again; does not return then.

    Celery's autoretry calls ``retry()`` outside of the body, where nobody would turn
    TaskAborted into the task's end.
    """
    if run.in_body:
        run.raise_if_aborted()
    elif run.request is not None:
        finish_aborted(task, task.request, run.request.error(), run)


def _after_return(task: "Task[..., Any]", request: Context, error: TaskAborted) -> None:
    """Call the task's ``after_return``, which Celery does not do after an Ignore."""
    args, kwargs = tuple(request.args or ()), dict(request.kwargs or {})
    try:
        task.after_return(
            states.REVOKED, error, request.id or "", args, kwargs, cast("Any", None)
        )
    except Exception:
        # As Celery has it: the end is stored, and a second one must not be.
        logger.exception("Task %s: after_return failed", request.id)


def _stores_result(task: "Task[..., Any]", request: Context, run: Run | None) -> bool:
    if run is None and not task.app.conf.task_store_eager_result:
        return False
    # abort() gives a row to a task that ignores its result, too; somebody may wait
    # for that row to end.
    has_row = run is not None and run.state is not None
    ignored = task.ignore_result or request.ignore_result
    return has_row or not ignored or task.store_errors_even_if_ignored
