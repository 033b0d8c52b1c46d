"""What the child and the main process log and send alike about abortable tasks."""

import logging
from functools import cache
from typing import Any

from celery import Task

from aioabort.models import AbortRequest, Outcome
from aioabort.signals import task_aborted

logger: logging.Logger = logging.getLogger(__name__)


@cache
def log_unabortable(problem: str) -> None:
    """Log why no task can be aborted; each process logs each *problem* once."""
    logger.error("aioabort worker: tasks run, but cannot be aborted: %s", problem)


def announce_outcome(
    task: "Task[..., Any]", request: AbortRequest, outcome: Outcome
) -> None:
    """Log how *task* ended after its abort *request*, and send ``task_aborted``."""
    # repr() keeps both texts in one line: a client may have sent line breaks.
    by = f" by {request.requested_by!r}" if request.requested_by else ""
    why = f": {request.reason!r}" if request.reason else ""
    logger.info(
        "aioabort worker: task %s[%s] was asked to stop%s%s; its outcome is %s",
        task.name,
        request.task_id,
        by,
        why,
        outcome,
    )
    task_aborted.send(task, task_id=request.task_id, request=request, outcome=outcome)
