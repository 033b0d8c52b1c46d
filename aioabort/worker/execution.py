"""Round a task's body: the start check before it, the abort's end after it.

``run``, and a ``__call__`` and ``before_start`` of the user's own, are wrapped, and
whichever Celery enters first makes the check: a subclass may override any of them and
never call ``super()``.
The innermost wrapper turns TaskAborted into the task's end, below Celery's autoretry,
which would take it for an error that deserves another try.
"""

import functools
import inspect
import logging
from asyncio import iscoroutine
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, cast

from celery import signals, states
from celery.app.task import Context, Task
from celery.exceptions import ImproperlyConfigured

from aioabort.exceptions import TaskAborted
from aioabort.records import is_storable
from aioabort.signals import task_aborted
from aioabort.worker import token
from aioabort.worker.agent import agent_for
from aioabort.worker.coroutines import run_coroutine
from aioabort.worker.finish import finish_aborted
from aioabort.worker.interrupt import interruption
from aioabort.worker.overtaken import after_retry, end_retry
from aioabort.worker.run import Run

logger: logging.Logger = logging.getLogger(__name__)

#: The run of this thread that has just ended, if its end told nothing of a request.
_unsettled: ContextVar[Run | None] = ContextVar("aioabort_unsettled", default=None)


def make_abortable(cls: type["Task[..., Any]"]) -> None:
    """Wrap what *cls* defines, or inherits from a mixin, of all that a run calls."""
    for name in ("run", "__call__", "before_start"):
        body = inspect.getattr_static(cls, name)
        if body is not getattr(Task, name) and not hasattr(body, "is_abortable"):
            setattr(cls, name, _wrap(body))


def _wrap(body: Any) -> Callable[..., Any]:
    # A task that is not bound to its first argument has its function as staticmethod.
    is_static = isinstance(body, staticmethod)
    function: Callable[..., Any] = body.__func__ if is_static else body

    @functools.wraps(function)
    def run(self: "Task[..., Any]", /, *args: Any, **kwargs: Any) -> Any:
        if not is_static:
            args = (self, *args)
        return run_abortable(self, function, args, kwargs)

    wrapper: Any = run
    wrapper.is_abortable = True
    if is_static:
        # Else the first argument would pass for ``self``.
        del wrapper.__wrapped__
    return cast("Callable[..., Any]", wrapper)


def run_abortable(
    task: "Task[..., Any]",
    body: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Call *body*; if a worker does it, under a token and after the start check."""
    request = cast("Context | None", task.request_stack.top)
    if request is None or request.called_directly:
        return body(*args, **kwargs)
    if request.is_eager:
        return _run_eagerly(task, request, body, args, kwargs)
    current = token.current.get()
    run = current if current.task_id == request.id else _begin(task, request)
    if not isinstance(run, Run):
        nobodys = token.AbortToken(request.id or "")
        return _finish_coroutine(task, nobodys, body(*args, **kwargs))
    was_in_body, run.in_body = run.in_body, True
    try:
        if not run.is_started:
            run.is_started = True
            _check_start(run)
        run.is_killable = True
        return _finish_coroutine(task, run, _call(task, run, body, args, kwargs))
    except (TaskAborted, ExceptionGroup) as raised:
        error = _own_abort(raised, request)
        if error is None:
            raise
        finish_aborted(task, request, error, run)
    finally:
        run.in_body = was_in_body
        if not was_in_body:
            run.leave_body()


def _check_start(run: Run) -> None:
    """Raise TaskAborted if the task was asked to stop before its body."""
    if not run.is_watched:
        run.supervisor.begin(run)
    run.supervisor.wait_for_look(run)
    if run.state in states.READY_STATES and run.aborted:
        # A redelivery of a run that has ended. It was looked at while Celery stored
        # STARTED, which may have erased that end since.
        run.supervisor.look_again(run)
    run.raise_if_aborted()


def _run_eagerly(
    task: "Task[..., Any]",
    request: Context,
    body: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Call *body*, of a task that nobody can ask to stop: it runs where it is sent.

    It may be called by a task whose abort it sees, or raise TaskAborted by itself.
    """
    nobodys = token.AbortToken(request.id or "")
    try:
        return _finish_coroutine(task, nobodys, body(*args, **kwargs))
    except (TaskAborted, ExceptionGroup) as raised:
        error = _own_abort(raised, request)
        if error is None:
            raise
        finish_aborted(task, request, error)


def _call(
    task: "Task[..., Any]",
    run: Run,
    body: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Call *body*, which an abort interrupts if the task is of that mode."""
    if getattr(task, "abort_mode", None) != "raise":
        return body(*args, **kwargs)
    with interruption(run):
        return body(*args, **kwargs)


def _own_abort(raised: Exception, request: Context) -> TaskAborted | None:
    """Return the abort that *raised* is or consists of; None if it is anything else."""
    while isinstance(raised, ExceptionGroup):
        # A task group raises a group even for one child.
        group = cast("ExceptionGroup[Exception]", raised)
        aborts, others = group.split(TaskAborted)
        if aborts is None or others is not None:
            return None
        raised = aborts.exceptions[0]
    # Another task's abort reaches one that waits for its result: an error like others.
    own = {None, request.id}
    if request.is_eager:
        own.add(token.current.get().task_id)
    if not isinstance(raised, TaskAborted) or raised.task_id not in own:
        return None
    # A subclass might be one that nobody but this process knows.
    return TaskAborted(*raised.args)


def _finish_coroutine(
    task: "Task[..., Any]", current: token.AbortToken, value: Any
) -> Any:
    """Return *value*, or what it comes to if it is a coroutine."""
    return run_coroutine(task, current, value) if iscoroutine(value) else value


def _begin(task: "Task[..., Any]", request: Context) -> Run | None:
    """Return a run that PostgreSQL is asked about; None for one that cannot be."""
    if not is_storable(request.id or ""):
        # Every look at all that runs here would fail for the sake of this one.
        _warn_once("PostgreSQL cannot hold the id of one of them")
        return None
    try:
        agent = agent_for(task.app)
    except ImproperlyConfigured as error:
        _warn_once(str(error))
        return None
    run = Run(request, agent)
    token.current.set(run)
    token.lend(run)
    return run


@functools.cache
def _warn_once(problem: str) -> None:
    logger.error("aioabort worker: tasks run, but cannot be aborted: %s", problem)


def _begin_early(sender: "Task[..., Any]", **_: object) -> None:
    """Have PostgreSQL asked while Celery stores that the task has started."""
    request = cast("Context | None", sender.request_stack.top)
    if request is None or request.is_eager or not hasattr(sender.run, "is_abortable"):
        return
    run = _begin(sender, request)
    # Our own result backend asks in the statement that stores STARTED; if that is not
    # stored after all, the start check asks.
    if run is not None and not _stores_start(sender, request):
        run.supervisor.begin(run)


def _stores_start(task: "Task[..., Any]", request: Context) -> bool:
    is_stored = task.track_started and not (task.ignore_result or request.ignore_result)
    return is_stored and getattr(task.backend, "asks_at_start", False)


def _end(
    sender: "Task[..., Any]", task_id: str, state: str | None, **_: object
) -> None:
    """End the run that Celery is done with: its result is stored, if it has one."""
    run = token.current.get()
    if isinstance(run, Run) and run.task_id == task_id and not run.has_ended:
        token.current.set(run.outer)
        token.lend(run.outer)
        run.end(state)
        if run.is_watched:
            _end_watch(sender, run, state)
        _unsettled.set(run if run.outcome is None else None)
        if run.aborted and run.outcome is not None:
            task_aborted.send(
                sender, task_id=task_id, request=run.request, outcome=run.outcome
            )


def _end_watch(task: "Task[..., Any]", run: Run, state: str | None) -> None:
    request = task.request_stack.top
    if run.honoured and run.outcome == "aborted" and request.retries:
        end_retry(task, request, run)
        return
    run.supervisor.end(run)
    if state == states.RETRY:
        after_retry(task, request, run)


def _end_internally(task_id: str, **_: object) -> None:
    """Settle the run whose end Celery could not store; nobody will run it again."""
    run = _unsettled.get()
    if run is not None and run.task_id == task_id:
        _unsettled.set(None)
        run.is_lost = True
        run.end(states.FAILURE)
        run.supervisor.begin(run)


signals.task_internal_error.connect(_end_internally, weak=False)
signals.task_prerun.connect(_begin_early, weak=False)
signals.task_postrun.connect(_end, weak=False)
