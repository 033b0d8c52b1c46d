"""AbortableTask: where the producer's side and the worker's side meet."""

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Literal, TypeVar, cast

from celery import states
from celery.exceptions import ImproperlyConfigured, Retry

from aioabort.exceptions import StoreError
from aioabort.generics import GenericTask, P, R_co
from aioabort.producer.publishing import in_thread
from aioabort.producer.result import AbortableAsyncResult, AbortableEagerResult
from aioabort.worker.agent import agent_for
from aioabort.worker.execution import make_abortable
from aioabort.worker.finish import AbortHonoured, end_instead_of_retry
from aioabort.worker.run import Run
from aioabort.worker.token import (
    OUTSIDE,
    AbortToken,
    current,
    current_token,
    find_token,
)

logger: logging.Logger = logging.getLogger(__name__)

T = TypeVar("T")

_token = current.get


class AbortableTask(GenericTask[P, R_co]):
    """A task that can be asked to stop while it is queued, waiting or running.

    A request that was made before the body begins ends the task as REVOKED and the
    body never runs. After that it is the body's to look: ``is_aborted()`` and return,
    or ``raise_if_aborted()``.
    """

    abstract = True
    #: Whether an abort waits for the body to look, or raises TaskAborted inside it,
    #: wherever that is but in a ``shield()``. Coroutines are cancelled in either mode.
    abort_mode: Literal["cooperative", "raise"] = "cooperative"
    Request = "aioabort.worker.request:AbortableRequest"
    _backend: Any

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
        """The token of the run that this thread is in, to hand to other threads."""
        return current_token()

    def is_aborted(self, **kwargs: Any) -> bool:
        """Whether the task was asked to stop: a memory read, for the tightest loop.

        False outside of a worker's run, as in a unit test. With ``task_id=`` another
        task is meant, and PostgreSQL is asked; if it cannot be, the answer is False
        and a warning is logged. Other arguments are ignored, as in
        celery.contrib.abortable.
        """
        if not kwargs and not _token().aborted:
            return False
        return self._is_aborted(**kwargs)

    def raise_if_aborted(self) -> None:
        """Raise TaskAborted if the task was asked to stop; it ends as REVOKED."""
        current_token().raise_if_aborted()

    def until_aborted(self, items: Iterable[T]) -> Iterator[T]:
        """Yield *items* until the task is asked to stop; no item is taken in vain."""
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
        """Store a state, unless it would hide that the task is being aborted.

        From the abort on, a state of the task's own is dropped; its end is not.
        """
        token = _token()
        is_own = task_id is None or task_id == token.task_id
        is_ending = isinstance(token, Run) and token.aborted and is_own
        if is_ending and state not in states.READY_STATES:
            return
        super().update_state(task_id, state, meta, **kwargs)

    def retry(self, *args: Any, **kwargs: Any) -> Retry:
        """Retry the task, as Celery's own does; one that is to stop ends instead."""
        token = _token()
        if isinstance(token, Run) and token.is_aborted():
            end_instead_of_retry(self, token)
        return super().retry(*args, **kwargs)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AbortableAsyncResult[R_co]:
        """Publish the task, and return a result that can be aborted and awaited."""
        return super().delay(*args, **kwargs)  # type: ignore[return-value]

    def apply_async(self, *args: Any, **kwargs: Any) -> AbortableAsyncResult[R_co]:
        """Publish the task with Celery's options; the result is as ``delay()``'s."""
        return super().apply_async(*args, **kwargs)  # type: ignore[return-value]

    async def adelay(
        self, *args: P.args, **kwargs: P.kwargs
    ) -> AbortableAsyncResult[R_co]:
        """Publish the task as ``delay()`` does, in a thread: the loop goes on."""
        return await in_thread(partial(self.delay, *args, **kwargs))

    async def aapply_async(
        self, *args: Any, **kwargs: Any
    ) -> AbortableAsyncResult[R_co]:
        """Publish the task as ``apply_async()`` does, in a thread: the loop goes on."""
        return await in_thread(partial(self.apply_async, *args, **kwargs))

    def apply(self, *args: Any, **kwargs: Any) -> AbortableEagerResult[R_co]:
        """Run the task here and now, as Celery's own does, and return how it ended.

        If TaskAborted ends it, Celery's rules for errors hold: it is raised here if
        the task is to propagate them, and otherwise by the result.
        """
        result: Any = super().apply(*args, **kwargs)
        ending, state = result.result, result.state
        if isinstance(ending, AbortHonoured):
            ending, state = cast("Any", ending.__cause__), states.REVOKED
            throw = kwargs.get("throw")
            if self.app.conf.task_eager_propagates if throw is None else throw:
                raise ending
        return AbortableEagerResult(
            result.id, ending, state, result.traceback, self.name
        )

    def AsyncResult(  # noqa: N802 - the name is Celery's
        self, task_id: str, **kwargs: Any
    ) -> AbortableAsyncResult[R_co]:
        """Return the result of the run *task_id* of this task."""
        kwargs.setdefault("backend", self._backend)
        return AbortableAsyncResult(
            task_id, task_name=self.name, app=self.app, **kwargs
        )

    def replace(self, sig: Any) -> Any:
        """Replace this task, as Celery's own does; the id goes on in *sig*."""
        token = _token()
        if isinstance(token, Run):
            token.replaced = True
        return super().replace(sig)

    def _is_aborted(self, task_id: str | None = None, **_: Any) -> bool:
        token = find_token()
        if task_id is None or task_id == token.task_id:
            return token is not OUTSIDE and token.is_aborted()
        result = cast("object", self.AsyncResult(task_id))
        if not isinstance(result, AbortableAsyncResult):
            return False
        try:
            row = agent_for(self.app).ask(task_id)
        except (ImproperlyConfigured, StoreError) as error:
            logger.warning("Cannot tell whether %s is aborted: %s", task_id, error)
            return False
        return row is not None and row.is_aborted
