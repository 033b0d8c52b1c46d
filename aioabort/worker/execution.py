"""Round a task's body: the start check before it, the abort's end after it.

``run`` and a ``__call__`` of the user's own are both wrapped, and whichever Celery
enters first begins the run: a subclass may override either and never call ``super()``.
The innermost wrapper turns TaskAborted into the task's end, below Celery's autoretry,
which would take it for an error that deserves another try.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, cast

from celery import signals
from celery.app.task import Context, Task
from celery.exceptions import ImproperlyConfigured

from aioabort.exceptions import TaskAborted
from aioabort.worker import token
from aioabort.worker.agent import agent_for
from aioabort.worker.finish import finish_aborted
from aioabort.worker.run import Run

logger: logging.Logger = logging.getLogger(__name__)


def make_abortable(cls: type["Task[..., Any]"]) -> None:
    """Wrap the ``run`` and ``__call__`` that *cls* defines or inherits from a mixin."""
    for name in ("run", "__call__"):
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
    if request is None or request.called_directly or request.is_eager:
        return body(*args, **kwargs)
    current = token.current.get()
    run = current if current.task_id == request.id else _begin(task, request)
    if not isinstance(run, Run):
        return body(*args, **kwargs)
    try:
        if not run.is_started:
            run.is_started = True
            run.raise_if_aborted()
        return body(*args, **kwargs)
    except TaskAborted as error:
        if error.task_id not in {None, request.id}:
            raise  # another task's, whose result this one was waiting for
        finish_aborted(task, request, run, error)


def _begin(task: "Task[..., Any]", request: Context) -> Run | None:
    """Return a run that PostgreSQL was asked about; None without a configuration."""
    try:
        agent = agent_for(task.app)
    except ImproperlyConfigured as error:
        _warn_once(str(error))
        return None
    run = Run(request, agent)
    token.current.set(run)
    agent.begin(run)
    return run


@functools.cache
def _warn_once(problem: str) -> None:
    logger.error("aioabort worker: tasks run, but cannot be aborted: %s", problem)


def _end(task_id: str, state: str | None, **_: object) -> None:
    """End the run that Celery is done with: its result is stored, if it has one."""
    run = token.current.get()
    if isinstance(run, Run) and run.task_id == task_id and not run.has_ended:
        token.current.set(run.outer)
        run.end(state)
        run.supervisor.end(run)


signals.task_postrun.connect(_end, weak=False)
