"""Begins and ends the run of a task when Celery sends its signals.

    task_prerun | STARTED stored | start check, body | result stored | task_postrun

PostgreSQL is asked while Celery stores STARTED, so the start check seldom waits.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, cast

from celery import Celery, signals, states
from celery.app.task import Context, Task
from celery.exceptions import ImproperlyConfigured

from aioabort.models import is_storable
from aioabort.worker.agent.agent import agent_for
from aioabort.worker.announcements import announce_outcome, log_unabortable
from aioabort.worker.execution.batches import begin_batch, end_batch
from aioabort.worker.execution.retry_race import end_aborted_retry, restore_after_retry
from aioabort.worker.run import Phase, Run
from aioabort.worker.token import current, expose_to_threads
from aioabort.worker.workflow import ids_of_followers

#: The latest run of this context that has ended.
_latest: ContextVar[Run | None] = ContextVar("aioabort_latest_run", default=None)

logger: logging.Logger = logging.getLogger(__name__)


def begin_run(task: "Task[..., Any]", context: Context) -> Run | None:
    """Make a run the current one; return None if the task cannot be aborted."""
    if not is_storable(context.id or ""):
        # In the agent's query, this id would fail the poll of all other runs, too.
        log_unabortable("PostgreSQL cannot hold the id of one of them")
        return None
    try:
        agent = agent_for(task.app)
    except ImproperlyConfigured as error:
        log_unabortable(str(error))
        return None
    run = Run(context, agent, task.app)
    current.set(run)
    expose_to_threads(run)
    return run


def _on_prerun(sender: "Task[..., Any]", args: Sequence[Any], **_: object) -> None:
    context = cast("Context | None", sender.request_stack.top)
    if context is None or context.is_eager or not hasattr(sender.run, "is_abortable"):
        return
    if not context.id:
        begin_batch(sender, args)
        return
    run = begin_run(sender, context)
    # Our own result backend asks in the statement that stores STARTED. If Celery does
    # not store it after all, the start check asks.
    if run is not None and not _asks_at_start(sender, context):
        run.supervisor.watch(run)


def _asks_at_start(task: "Task[..., Any]", context: Context) -> bool:
    is_stored = task.track_started and not (task.ignore_result or context.ignore_result)
    return is_stored and getattr(task.backend, "asks_at_start", False)


def _on_postrun(
    sender: "Task[..., Any]", task_id: str, state: str | None, **_: object
) -> None:
    run = current.get()
    if not isinstance(run, Run) or run.task_id != task_id or run.has_ended:
        end_batch(sender, state)
        if state == states.FAILURE:
            _end_followers_of_plain(sender)
        return
    current.set(run.outer)
    expose_to_threads(run.outer)
    is_watched = run.phase is not Phase.CREATED
    if _ends_workflow(run, state):
        run.followers = ids_of_followers(sender.request_stack.top)
    run.mark_ended(state)
    if is_watched:
        _report_end(sender, run, state)
    _latest.set(run)
    if run.request is not None and run.outcome is not None:
        announce_outcome(sender, run.request, run.outcome)


def _end_followers_of_plain(task: "Task[..., Any]") -> None:
    """Settle the requests of abortable tasks that do not run, as *task* has failed."""
    context = cast("Context | None", task.request_stack.top)
    if context is None or context.is_eager or hasattr(task.run, "is_abortable"):
        return
    followers = ids_of_followers(context)
    if followers and has_abortable_tasks(task.app):
        with suppress(ImproperlyConfigured):
            agent_for(task.app).report_followers(followers)


def has_abortable_tasks(app: Celery) -> bool:
    """Whether a task of *app* can be aborted."""
    return any(hasattr(task.run, "is_abortable") for task in app.tasks.values())


def _ends_workflow(run: Run, state: str | None) -> bool:
    """Whether no task that was to run after *run* is published."""
    if state == states.IGNORED:
        # Another run may have returned a value, and published them.
        has_result = run.has_result or run.stored_state == states.SUCCESS
        return run.ending != "replaced" and not has_result
    return state == states.FAILURE


def _report_end(task: "Task[..., Any]", run: Run, state: str | None) -> None:
    context = task.request_stack.top
    if run.ending == "honoured" and run.outcome == "aborted" and context.retries:
        end_aborted_retry(task, context, run)
        return
    run.supervisor.report_end(run)
    if state == states.RETRY:
        restore_after_retry(task, context, run)


def _on_internal_error(
    sender: "Task[..., Any]",
    task_id: str,
    request: Any,
    exception: BaseException,
    **_: object,
) -> None:
    """End a task whose state or result Celery failed to store.

    Celery runs it no more, so no other run would store its end or settle its request.
    """
    run = _latest.get()
    if run is None or run.task_id != task_id:
        return
    _latest.set(None)
    context = Context(request or {})
    _store_failure(sender, context, exception)
    if run.outcome is None:
        run.followers = ids_of_followers(context)
        run.mark_lost()
        run.supervisor.watch(run)


def _store_failure(
    task: "Task[..., Any]", context: Context, error: BaseException
) -> None:
    """Store that the task failed by *error*, without the columns of its context.

    They may be why nothing can be stored: with ``result_extended``, a task name of 156
    characters fits into no table of Celery's database backend. Celery itself tries to
    store FAILURE after this, with these columns.
    """
    ignored = task.ignore_result or context.ignore_result
    if ignored and not task.store_errors_even_if_ignored:
        return
    backend, task_id = task.backend, context.id or ""
    try:
        if backend.get_state(task_id) not in states.READY_STATES:
            backend.store_result(task_id, error, states.FAILURE)
    except Exception as failure:  # noqa: BLE001 - each backend has its own errors
        logger.warning("Task %s: its failure cannot be stored: %s", task_id, failure)


signals.task_prerun.connect(_on_prerun, weak=False)
signals.task_postrun.connect(_on_postrun, weak=False)
signals.task_internal_error.connect(_on_internal_error, weak=False)
