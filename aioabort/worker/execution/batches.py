"""Watches the tasks of a batch, which celery-batches hands to one call of the body.

The batch has no message and no id that a client knows; its tasks have. The body asks
``is_aborted(task_id=...)`` about each of them, and stores their results itself.
"""

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from celery import Task, states
from celery.app.task import Context
from celery.exceptions import ImproperlyConfigured

from aioabort.models import is_storable
from aioabort.worker.agent.agent import agent_for
from aioabort.worker.announcements import announce_outcome, log_unabortable
from aioabort.worker.run import Run

#: The tasks of the batch that runs in this context, by their ids.
_batch: ContextVar[Mapping[str, Run]] = ContextVar("aioabort_batch")


def begin_batch(task: "Task[..., Any]", args: Sequence[Any]) -> None:
    """Watch the tasks that *args* of the body hold, and query their abort requests."""
    requests = [each for each in (args[0] if args else ()) if hasattr(each, "id")]
    try:
        agent = agent_for(task.app)
    except ImproperlyConfigured as error:
        log_unabortable(str(error))
        return
    runs = {
        each.id: Run(Context(id=each.id, hostname=each.hostname), agent)
        for each in requests
        if is_storable(each.id)
    }
    _batch.set(runs)
    for run in runs.values():
        agent.watch(run)
    # The last one first: when it has been queried, the others have been, too.
    for run in reversed(runs.values()):
        agent.wait_for_first_poll(run)


def find_in_batch(task_id: str) -> Run | None:
    """Return the run of *task_id*, if it is in the batch that runs in this context."""
    return _batch.get({}).get(task_id)


def end_batch(task: "Task[..., Any]", state: str | None) -> None:
    """Settle the abort requests of the tasks; does nothing if no batch has run."""
    runs = _batch.get({})
    if not runs:
        return
    _batch.set({})
    for run in runs.values():
        # Celery stores nothing: a task that has no final state by then gets none.
        run.mark_ended(states.IGNORED if state == states.SUCCESS else states.FAILURE)
        run.supervisor.report_end(run)
        if run.request is not None and run.outcome is not None:
            announce_outcome(task, run.request, run.outcome)
