"""Wraps the body of a task: a start check before it, an abort's final state after it.

``run``, and ``__call__`` and ``before_start`` if the user defines them, are wrapped. The
one that Celery enters first makes the start check: a subclass may override any of them
and never call ``super()``.

The innermost wrapper turns TaskAborted into the final state REVOKED. That is below
Celery's autoretry, which would otherwise retry the task because of the exception.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, cast

from celery import states
from celery.app.task import Context, Task

from aioabort.exceptions import AbortInterrupt, TaskAborted
from aioabort.orm import renew_connection
from aioabort.timing import Timing
from aioabort.worker.execution.coroutines import is_awaited_here, run_coroutine
from aioabort.worker.execution.ending import end_as_revoked
from aioabort.worker.execution.interrupt import (
    call_body,
    call_interruptibly,
    can_interrupt,
)
from aioabort.worker.execution.run_lifecycle import begin_run
from aioabort.worker.live_token import LiveToken
from aioabort.worker.run import Phase, Run
from aioabort.worker.token import current

#: What Celery's main process makes of a message for an abortable task.
REQUEST_CLASS: Final = "aioabort.worker.main_process.request:AbortableRequest"


def make_abortable(cls: type["Task[..., Any]"]) -> None:
    """Wrap the methods that run a task, if *cls* defines or inherits its own."""
    for name in ("run", "__call__", "before_start"):
        body = inspect.getattr_static(cls, name)
        if body is not getattr(Task, name) and not hasattr(body, "is_abortable"):
            setattr(cls, name, _wrap(body))


def _wrap(body: Any) -> Callable[..., Any]:
    # Celery makes the function of a task without ``bind=True`` a staticmethod.
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
        # Otherwise Celery would read the signature of the function, and take its first
        # argument for ``self``.
        del wrapper.__wrapped__
    return cast("Callable[..., Any]", wrapper)


def run_abortable(
    task: "Task[..., Any]",
    body: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Call *body*. In a worker, the call has a token and follows the start check."""
    context = cast("Context | None", task.request_stack.top)
    if context is None or context.called_directly:
        return body(*args, **kwargs)
    if context.is_eager:
        return _run_eagerly(task, context, body, args, kwargs)
    token = current.get()
    run = token if token.task_id == context.id else begin_run(task, context)
    if not isinstance(run, Run):
        return _finish(task, context, body(*args, **kwargs))
    is_nested = run.phase is Phase.IN_BODY
    try:
        if run.phase < Phase.IN_BODY:
            _check_start(run)
        run.enter_body()
        call = functools.partial(body, *args, **kwargs)
        value = _call(task, run, call, is_nested=is_nested)
        return _finish(task, context, value, run)
    except (TaskAborted, AbortInterrupt, BaseExceptionGroup) as raised:
        error = _own_abort(raised, context)
        if error is None:
            raise
        # The method that called this one, if any, is interrupted no more: what follows
        # is no part of the body.
        run.stop_with(None)
        end_as_revoked(task, context, error, run)
    finally:
        if not is_nested:
            run.leave_body(is_exiting=isinstance(sys.exception(), SystemExit))
            # Celery stores the result next, and does not try again.
            renew_connection(task.backend)


def _check_start(run: Run) -> None:
    """Raise TaskAborted if the task was asked to stop before its body."""
    if run.phase is Phase.CREATED:
        run.supervisor.watch(run)
    run.supervisor.wait_for_first_poll(run)
    if run.stored_state in states.READY_STATES and run.aborted:
        # A redelivery of a run that has ended. The first poll raced with Celery's
        # STARTED write, which may have replaced the final state since: poll again.
        run.supervisor.poll_again(run)
    run.raise_if_aborted()


def _run_eagerly(
    task: "Task[..., Any]",
    context: Context,
    body: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Call *body* where its task is sent, without a worker that could abort it.

    The body may still see the abort of a task that called it, or raise TaskAborted.
    """
    try:
        return _finish(task, context, body(*args, **kwargs))
    except (TaskAborted, ExceptionGroup) as raised:
        error = _own_abort(raised, context)
        if error is None:
            raise
        # An abort of the calling task does not interrupt the backend.
        with current.get().shield():
            end_as_revoked(task, context, error)


def _finish(
    task: "Task[..., Any]", context: Context, value: Any, run: Run | None = None
) -> Any:
    """Return *value*, or run it to its end if it is a coroutine.

    Without a *run*, nothing aborts the coroutine. A method that a coroutine of the same
    run calls returns its own coroutine, for the caller to await.
    """
    if not _is_coroutine(value) or is_awaited_here(context):
        return value
    if run is None:
        return run_coroutine(task, LiveToken(context.id or ""), value, Timing())
    return run_coroutine(task, run, value, run.supervisor.timing)


def _is_coroutine(value: object) -> bool:
    # Not asyncio.iscoroutine(): on Python 3.11, that is True for generators.
    return isinstance(value, Coroutine)


def _call(
    task: "Task[..., Any]", run: Run, body: Callable[[], Any], *, is_nested: bool
) -> Any:
    """Call *body*; an abort interrupts it if ``abort_mode`` is "raise"."""
    if getattr(task, "abort_mode", None) != "raise" or not can_interrupt():
        return body()
    if is_nested:
        # The outermost method is interrupted, and goes on when this one has ended.
        return call_body(body)
    return call_interruptibly(
        run, run.supervisor.interrupt_signal, run.supervisor.timing, body
    )


def _own_abort(raised: BaseException, context: Context) -> TaskAborted | None:
    """Return the abort of this task if *raised* is that and nothing else."""
    while isinstance(raised, BaseExceptionGroup):
        # A task group raises a group even if one child alone has failed.
        group = cast("BaseExceptionGroup[BaseException]", raised)
        aborts, others = group.split((TaskAborted, AbortInterrupt))
        if aborts is None or others is not None:
            return None
        raised = aborts.exceptions[0]
    # The abort of another task reaches a task that waits for its result. There it is an
    # error like any other.
    own = {None, context.id}
    if context.is_eager:
        own.add(current.get().task_id)
    if (
        not isinstance(raised, TaskAborted | AbortInterrupt)
        or raised.task_id not in own
    ):
        return None
    # A client may be unable to import a subclass of TaskAborted.
    return TaskAborted(*raised.args)
