"""Gives an aborted task the final state REVOKED, for all that wait for it.

With ABORTED, which is no final state for Celery, ``get()``, groups and chords would wait
for ever. A bare Ignore would leave the task STARTED.
"""

import logging
from copy import copy
from functools import partial
from typing import Any, NoReturn, cast

from celery import Task, states
from celery.app.task import Context

from aioabort.celery_compat import call_errbacks
from aioabort.exceptions import TaskAborted
from aioabort.timing import Timing
from aioabort.worker.execution.store_retry import store_with_retries
from aioabort.worker.final_state import store_revoked
from aioabort.worker.run import Phase, Run
from aioabort.worker.workflow import (
    AbortHonoured,
    end_what_follows,
    without_what_follows,
)

logger: logging.Logger = logging.getLogger(__name__)


def end_as_revoked(
    task: "Task[..., Any]",
    context: Context,
    error: TaskAborted,
    run: Run | None = None,
) -> NoReturn:
    """Store *error* as REVOKED, end the chain and the chord, and raise AbortHonoured.

    If another run of the task has stored a result, that is left alone, and so is what
    follows it. Without a *run*, the task runs eagerly.
    """
    backend = task.backend
    timing = run.supervisor.timing if run is not None else Timing()

    def store(context: Context) -> bool:
        act = partial(store_revoked, backend, context, error)
        return store_with_retries(backend, context.id or "", act, timing)

    # A redelivery of a run that has stored REVOKED only does what may be missing.
    is_stored = run is not None and run.stored_state == states.REVOKED
    stores_result = not is_stored and _stores_result(task, context, run)
    has_result = stores_result and not store(context)
    if not has_result:
        if run is not None:
            # After the task's own end: until that is stored, another run may return,
            # and publish the followers.
            end_what_follows(backend, context, error, store)
        finish = partial(
            backend.mark_as_failure,
            context.id or "",
            error,
            request=without_what_follows(context),
            state=states.REVOKED,
            store_result=False,
            call_errbacks=False,
        )
        store_with_retries(backend, context.id or "", finish, timing)
        if not is_stored:
            _call_errbacks(task, context, error)
    if run is not None:
        run.mark_honoured(has_result=has_result)
    _after_return(task, context, error)
    raise AbortHonoured(str(error)) from error


def end_instead_of_retry(task: "Task[..., Any]", run: Run) -> None:
    """End an aborted run that wants a retry; returns if there is no abort.

    Celery's autoretry calls ``retry()`` outside of the wrapped body, where no wrapper
    turns TaskAborted into the final state.
    """
    if run.phase is not Phase.OUT_OF_BODY:
        run.raise_if_aborted()
    elif run.request is not None:
        end_as_revoked(task, task.request, run.request.error(), run)


def _call_errbacks(
    task: "Task[..., Any]", context: Context, error: TaskAborted
) -> None:
    """Call each errback once. An error of one is logged, as REVOKED is stored."""
    for errback in context.errbacks or []:
        alone = copy(context)
        alone.errbacks = [errback]
        try:
            call_errbacks(task.backend, alone, error)
        except Exception:
            logger.exception("Task %s: an errback failed", context.id)


def _after_return(task: "Task[..., Any]", context: Context, error: TaskAborted) -> None:
    """Call the task's ``after_return``, which Celery does not call after an Ignore."""
    args, kwargs = tuple(context.args or ()), dict(context.kwargs or {})
    try:
        task.after_return(
            states.REVOKED, error, context.id or "", args, kwargs, cast("Any", None)
        )
    except Exception:
        # REVOKED is stored, and Celery must not store a FAILURE over it.
        logger.exception("Task %s: after_return failed", context.id)


def _stores_result(task: "Task[..., Any]", context: Context, run: Run | None) -> bool:
    if run is None and not task.app.conf.task_store_eager_result:
        return False
    # abort() makes a row even for a task that ignores its result. A client may wait for
    # that row to have a final state.
    has_row = run is not None and run.stored_state is not None
    ignored = task.ignore_result or context.ignore_result
    return has_row or not ignored or task.store_errors_even_if_ignored
