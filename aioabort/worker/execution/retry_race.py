"""Restores a REVOKED result that Celery's late RETRY write has overwritten.

Celery publishes a retry first, and stores RETRY afterwards. If the retry is aborted in
between, RETRY replaces its final state, and a client that reads it later waits for ever:

    retry published | retry begins, aborted, REVOKED stored | request settled | RETRY

So both runs read the result after their own last write. The one that writes last sees
what the other has written.
"""

import logging
from functools import partial
from typing import Any

from celery import Task
from celery.app.task import Context

from aioabort.exceptions import TaskAborted
from aioabort.worker.execution.store_retry import store_with_retries
from aioabort.worker.final_state import restore_revoked
from aioabort.worker.run import Run

logger: logging.Logger = logging.getLogger(__name__)


def restore_after_retry(task: "Task[..., Any]", context: Context, run: Run) -> None:
    """Restore the result if *run* has published a retry, which was aborted since."""
    row = run.supervisor.poll_again(run)
    # A request that was settled before the run began is for an older publication.
    request = row.request if run.aborted and row is not None else None
    if request is not None and request.outcome == "aborted":
        _restore(task, context, request.error(), run)


def end_aborted_retry(task: "Task[..., Any]", context: Context, run: Run) -> None:
    """End *run*, an aborted retry, and restore its result if RETRY came after it."""
    run.supervisor.report_end_now(run)
    if run.request is not None:
        _restore(task, context, run.request.error(), run)


def _restore(
    task: "Task[..., Any]", context: Context, error: TaskAborted, run: Run
) -> None:
    """Store *error* again if RETRY is stored. The workflow has ended already."""
    backend = task.backend
    restore = partial(restore_revoked, backend, context, error)
    try:
        is_restored = store_with_retries(
            backend, context.id or "", restore, run.supervisor.timing
        )
    except Exception:
        logger.exception("Task %s: its final state may be RETRY for ever", context.id)
        return
    if is_restored:
        logger.warning("Task %s: RETRY had replaced its final state", context.id)
