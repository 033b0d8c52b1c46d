"""AbortableTask: the base of tasks that a client can abort and a worker stops."""

import logging
import os
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Literal, TypeVar, cast

from celery import signals, states
from celery.exceptions import ImproperlyConfigured, Retry
from celery.utils.imports import symbol_by_name

from aioabort.celery_compat import GenericTask, P, R_co, own_backend
from aioabort.client.publishing import publish_in_thread
from aioabort.client.result import AbortableAsyncResult, AbortableEagerResult
from aioabort.exceptions import StoreError, TaskAborted
from aioabort.worker.agent.agent import agent_for
from aioabort.worker.execution.batches import find_in_batch
from aioabort.worker.execution.ending import end_instead_of_retry
from aioabort.worker.execution.mappings import prepare_worker
from aioabort.worker.execution.task_wrapper import REQUEST_CLASS, make_abortable
from aioabort.worker.run import Run
from aioabort.worker.token import (
    OUTSIDE,
    AbortToken,
    current,
    current_token,
    find_token,
)
from aioabort.worker.workflow import AbortHonoured

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

_token = current.get


class AbortableTask(GenericTask[P, R_co]):
    """A task that can be aborted while it is queued, waiting or running.

    If the abort comes before the body begins, the body never runs, and the task ends as
    REVOKED. After that, the body has to check: it calls ``is_aborted()`` and returns, or
    it calls ``raise_if_aborted()``.
    """

    abstract = True
    #: With "cooperative", the body has to check. With "raise", the abort also raises
    #: TaskAborted inside the body, anywhere except in a ``shield()``. A coroutine is
    #: cancelled in either mode.
    abort_mode: Literal["cooperative", "raise"] = "cooperative"
    Request = REQUEST_CLASS

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.abort_mode not in {"cooperative", "raise"}:
            raise ImproperlyConfigured(
                f"{cls.__name__}: abort_mode is 'cooperative' or 'raise', "
                f"not {cls.abort_mode!r}"
            )
        make_abortable(cls)

    @property
    def abort_token(self) -> AbortToken:
        """The token of the task that runs in this thread, to pass to other threads."""
        return current_token()

    def is_aborted(self, **kwargs: Any) -> bool:
        """Return whether the task was asked to stop: a memory read, for the tightest loop.

        Outside of a worker, as in a unit test, this is False. With ``task_id=``,
        PostgreSQL is asked about any task, and in any process: a process that the task
        starts has to pass the id. If PostgreSQL cannot be reached, a warning is logged
        and the answer is False. Other arguments are ignored, as in
        celery.contrib.abortable.
        """
        if not kwargs and not _token().aborted:
            return False
        return self._is_aborted(**kwargs)

    def raise_if_aborted(self) -> None:
        """Raise TaskAborted if the task was asked to stop.

        If the body does not catch it, the task ends as REVOKED.
        """
        if _token().aborted:
            current_token().raise_if_aborted()

    def until_aborted(self, items: Iterable[T]) -> Iterator[T]:
        """Yield *items* until the task is asked to stop.

        The check comes before each item is taken, so every item that is taken is yielded.
        """
        token = current_token()
        iterator = iter(items)
        while not token.is_aborted():
            try:
                item = next(iterator)
            except StopIteration:
                return
            yield item

    def update_state(
        self,
        task_id: str | None = None,
        state: str | None = None,
        meta: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Store a state, as Celery does, unless it would hide that the task is aborted.

        After the abort, a state that the task stores for itself is dropped, except for a
        final state.
        """
        token = _token()
        is_own = task_id is None or task_id == token.task_id
        is_aborted = isinstance(token, Run) and token.request is not None
        if is_aborted and is_own and state not in states.READY_STATES:
            return
        super().update_state(task_id, state, meta, **kwargs)

    def retry(self, *args: Any, **kwargs: Any) -> Retry:
        """Retry the task, as Celery does; if it is aborted, end it as REVOKED instead."""
        token = _token()
        if isinstance(token, Run) and token.is_aborted():
            end_instead_of_retry(self, token)
        return super().retry(*args, **kwargs)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AbortableAsyncResult[R_co]:
        """Send the task, and return a result that can be aborted and awaited."""
        return super().delay(*args, **kwargs)  # type: ignore[return-value]

    def apply_async(self, *args: Any, **kwargs: Any) -> AbortableAsyncResult[R_co]:
        """Send the task with Celery's options; the result is that of ``delay()``."""
        return super().apply_async(*args, **kwargs)  # type: ignore[return-value]

    async def adelay(
        self, *args: P.args, **kwargs: P.kwargs
    ) -> AbortableAsyncResult[R_co]:
        """Call ``delay()`` in a thread, so that the event loop is not blocked."""
        return await publish_in_thread(partial(self.delay, *args, **kwargs))

    async def aapply_async(
        self, *args: Any, **kwargs: Any
    ) -> AbortableAsyncResult[R_co]:
        """Call ``apply_async()`` in a thread, so that the event loop is not blocked."""
        return await publish_in_thread(partial(self.apply_async, *args, **kwargs))

    def apply(self, *args: Any, **kwargs: Any) -> AbortableEagerResult[R_co]:
        """Run the task in this thread, as Celery does, and return its result.

        If TaskAborted ends the task, it is raised as Celery raises errors: here with
        ``throw=True`` or ``task_eager_propagates``, and otherwise by the result. It is
        raised here, too, if it is the abort of the calling task, which that interrupts.
        """
        result: Any = super().apply(*args, **kwargs)
        value, state = result.result, result.state
        error = value.__cause__ if isinstance(value, AbortHonoured) else value
        if isinstance(error, TaskAborted) and _interrupts_caller(error):
            raise error
        if isinstance(value, AbortHonoured):
            value, state = cast("Any", value.__cause__), states.REVOKED
            throw = kwargs.get("throw")
            if self.app.conf.task_eager_propagates if throw is None else throw:
                raise value
        return AbortableEagerResult(
            result.id, value, state, result.traceback, self.name
        )

    def AsyncResult(  # noqa: N802 - the name is Celery's
        self, task_id: str, **kwargs: Any
    ) -> AbortableAsyncResult[R_co]:
        """Return the result of this task's call with the id *task_id*."""
        kwargs.setdefault("backend", own_backend(self))
        return AbortableAsyncResult(
            task_id, task_name=self.name, app=self.app, **kwargs
        )

    def start_strategy(self, app: Any, consumer: Any, **kwargs: Any) -> Any:
        """Return how a worker handles messages for this task.

        A ``Request`` class of the user's does what ours does as well.
        """
        ours: Any = symbol_by_name(REQUEST_CLASS)
        theirs: Any = symbol_by_name(self.Request)
        if not issubclass(theirs, ours):
            vars(self)["Request"] = type(theirs.__name__, (ours, theirs), {})
        return super().start_strategy(app, consumer, **kwargs)

    def replace(self, sig: Any) -> Any:
        """Replace this task by *sig*, as Celery does; *sig* takes over the id."""
        token = _token()
        if isinstance(token, Run):
            token.mark_replaced()
        return super().replace(sig)

    def _is_aborted(self, task_id: str | None = None, **_: Any) -> bool:
        token = find_token()
        if task_id is None or (task_id == token.task_id and not _is_inherited(token)):
            return token is not OUTSIDE and token.is_aborted()
        if (run := find_in_batch(task_id)) is not None:
            return run.is_aborted()
        result = cast("object", self.AsyncResult(task_id))
        if not isinstance(result, AbortableAsyncResult):
            return False
        try:
            return agent_for(self.app).call(lambda monitor: monitor.check(task_id))
        except (ImproperlyConfigured, StoreError) as error:
            logger.warning("Cannot tell whether %s is aborted: %s", task_id, error)
            return False


def _is_inherited(token: AbortToken) -> bool:
    """Return whether *token* is a copy in a forked child, which no agent sets."""
    return isinstance(token, Run) and token.pid != os.getpid()


def _interrupts_caller(error: TaskAborted) -> bool:
    """Return whether *error* is the abort of this thread's task, and ends it by force."""
    token = _token()
    if not isinstance(token, Run) or token.task_id != error.task_id:
        return False
    return not token.is_stopped_by(None)


# Sent before the children are forked, and before Celery builds what runs the tasks.
signals.worker_init.connect(prepare_worker, weak=False)
