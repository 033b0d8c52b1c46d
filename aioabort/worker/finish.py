"""How a task that honours its abort ends: as REVOKED, for everything that waits on it.

ABORTED as a final state would make ``get()``, groups and chords wait for ever, and a
bare Ignore would leave the task STARTED.
"""

from typing import Any, NoReturn

from celery import Task, states
from celery.app.task import Context
from celery.exceptions import Ignore

from aioabort.exceptions import TaskAborted
from aioabort.worker.run import Run


class AbortHonoured(Ignore):
    """Tells Celery that the end of this task is stored already."""


def finish_aborted(
    task: "Task[..., Any]", request: Context, run: Run, error: TaskAborted
) -> NoReturn:
    """Store *error* as REVOKED, stop the chain, fail the chord; then end the run.

    A result that is already stored is left alone: a redelivery of a finished run.
    """
    if run.state not in states.READY_STATES:
        task.backend.mark_as_failure(
            run.task_id,
            error,
            request=request,
            state=states.REVOKED,
            store_result=_stores_result(task, request, run),
        )
    run.honoured = True
    raise AbortHonoured(str(error)) from None


def _stores_result(task: "Task[..., Any]", request: Context, run: Run) -> bool:
    # abort() gives a row to a task that ignores its result, too; somebody may wait
    # for that row to end.
    has_row = run.state is not None
    ignored = task.ignore_result or request.ignore_result
    return has_row or not ignored or task.store_errors_even_if_ignored
