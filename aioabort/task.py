"""AbortableTask: where the producer's side and the worker's side meet."""

import logging
from typing import Any, cast

from aioabort.exceptions import StoreError
from aioabort.generics import GenericTask, P, R_co
from aioabort.producer.result import AbortableAsyncResult
from aioabort.worker.agent import agent_for
from aioabort.worker.execution import make_abortable
from aioabort.worker.run import Run
from aioabort.worker.token import OUTSIDE, AbortToken, current, current_token

logger: logging.Logger = logging.getLogger(__name__)

_token = current.get


class AbortableTask(GenericTask[P, R_co]):
    """A task that can be asked to stop while it is queued, waiting or running.

    A request that was made before the body begins ends the task as REVOKED and the
    body never runs. After that it is the body's to look: ``is_aborted()`` and return,
    or ``raise_if_aborted()``.
    """

    abstract = True
    _backend: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
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

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AbortableAsyncResult[R_co]:
        """Publish the task, and return a result that can be aborted and awaited."""
        return super().delay(*args, **kwargs)  # type: ignore[return-value]

    def apply_async(self, *args: Any, **kwargs: Any) -> AbortableAsyncResult[R_co]:
        """Publish the task with Celery's options; the result is as ``delay()``'s."""
        return super().apply_async(*args, **kwargs)  # type: ignore[return-value]

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
        token = _token()
        if task_id is None or task_id == token.task_id:
            return token is not OUTSIDE and token.is_aborted()
        result = cast("object", self.AsyncResult(task_id))
        if not isinstance(result, AbortableAsyncResult):
            return False
        try:
            row = agent_for(self.app).ask(task_id)
        except StoreError as error:
            logger.warning("Cannot tell whether %s is aborted: %s", task_id, error)
            return False
        return row is not None and row.is_aborted
