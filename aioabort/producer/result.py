"""The result of a task that can be aborted and awaited."""

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from celery import Celery, states
from celery.result import ResultBase

from aioabort.exceptions import TaskAborted
from aioabort.generics import GenericAsyncResult, GenericEagerResult, R_co
from aioabort.producer.cancelling import REASON, aborting_on_cancel
from aioabort.producer.limits import check_text
from aioabort.records import AbortReceipt, TaskRow, TaskSnapshot

if TYPE_CHECKING:
    from aioabort.producer.client import AbortClient

#: Stands for "the app's backend, when it is asked for".
_LATER: Final[Any] = object()


class AbortableAsyncResult(GenericAsyncResult[R_co]):
    """A task's result: ``await result`` returns its value or raises its error.

    Everything of Celery's own class works as before, ``get()`` included, except that
    ``wait``, ``abort`` and ``is_aborted`` are coroutines. Without a client, they use
    one that is opened for the running loop at first use and closed with the loop.
    """

    #: How the task ended, if ``as_completed()`` has found out; an error if it could not.
    end: TaskRow | Exception | None = None
    _backend: Any

    def __init__(
        self,
        id: str,  # noqa: A002 - the name is Celery's
        backend: Any = None,
        task_name: str | None = None,
        app: Celery | None = None,
        parent: ResultBase | None = None,
        *,
        client: "AbortClient | None" = None,
    ) -> None:
        super().__init__(id, backend or _LATER, task_name, app, parent)
        self._client = client

    @property
    def backend(self) -> Any:
        """Celery's backend; made when first asked for, as that may connect."""
        if self._backend is _LATER:
            self._backend = self.app.backend
        return self._backend

    @backend.setter
    def backend(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, backend: Any
    ) -> None:
        self._backend = backend

    def __del__(self) -> None:
        if self._backend is not _LATER:
            super().__del__()

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.wait().__await__()

    async def wait(  # type: ignore[override]
        self,
        timeout: float | None = None,
        *,
        abort_on_cancel: bool = False,
        reason: str | None = None,
    ) -> R_co:
        """Return the task's value when it has ended, or raise the error that ended it.

        Raises TaskAborted if it was aborted, and WaitTimeout (a TimeoutError) after
        *timeout* seconds; the task goes on then. While PostgreSQL is away, it goes on
        waiting.

        With *abort_on_cancel*, a wait that is cancelled has the task asked to stop, for
        *reason*, and is held up by that for 5 seconds at most.
        """
        if abort_on_cancel:
            check_text("reason", reason)
            async with aborting_on_cancel(partial(self.abort, reason=reason or REASON)):
                return await self.wait(timeout)
        client = await self._open_client()
        value: R_co = await client.wait(self, timeout)
        return value

    async def abort(
        self,
        *,
        reason: str | None = None,
        requested_by: str | None = None,
        grace: float | None = None,
    ) -> AbortReceipt:
        """Ask the task to stop, and all that comes before it in a chain or chord.

        The receipt says whether it can still be asked. If it still runs after *grace*
        seconds, it is killed by Celery's own ``revoke(terminate=True)``, in pools that
        can do that. Committed when this returns. Raises InvalidRequest for what cannot
        be stored, and StoreUnavailable or StoreError if PostgreSQL did not take it.
        """
        client = await self._open_client()
        return await client.abort(
            self, reason=reason, requested_by=requested_by, grace=grace
        )

    async def is_aborted(self) -> bool:
        """Whether the task is being aborted, or has ended by it."""
        client = await self._open_client()
        return await client.is_aborted(self.id)

    async def snapshot(self) -> TaskSnapshot[R_co]:
        """Return what is known of the task now: its state, result and request."""
        client = await self._open_client()
        return await client.snapshot(self.id)

    async def watch(self) -> AsyncGenerator[TaskSnapshot[R_co]]:
        """Yield what is known of the task now, and again after each change until it ends.

        States that follow each other closely may be passed over: the latest is what
        counts. The states before the end are as old as the poll interval at most.
        While PostgreSQL is away, it goes on waiting.
        """
        client = await self._open_client()
        async with aclosing(client.watch(self.id)) as snapshots:
            async for snapshot in snapshots:
                yield snapshot

    async def _open_client(self) -> "AbortClient":
        # Not at import: clients make results, too.
        from aioabort.producer.shared import client_of_running_loop  # noqa: PLC0415

        return self._client or await client_of_running_loop(self.app)


class AbortableEagerResult(  # pyright: ignore[reportIncompatibleMethodOverride]
    GenericEagerResult[R_co], AbortableAsyncResult[R_co]
):
    """The result of a task that ran eagerly: it has ended, and no client is needed."""

    _backend: Any = None

    async def wait(  # type: ignore[override]
        self, timeout: float | None = None, **_: object
    ) -> R_co:
        """Return the task's value, or raise the error that ended it."""
        del timeout
        value: R_co = self.get(disable_sync_subtasks=False)
        return value

    async def abort(self, **_: object) -> AbortReceipt:
        """Ask nobody: the receipt says that the task has ended."""
        return AbortReceipt(task_id=self.id, answer="finished", state=self.state)

    async def is_aborted(self) -> bool:
        """Whether the task has ended by an abort."""
        state = str(self.state)
        return state == states.REVOKED and isinstance(self.result, TaskAborted)

    async def snapshot(self) -> TaskSnapshot[R_co]:
        """Return how the task ended."""
        return TaskSnapshot(
            task_id=self.id,
            state=self.state,
            result=self.result,
            traceback=self.traceback and str(self.traceback),
            is_finished=True,
            is_aborted=await self.is_aborted(),
        )

    async def watch(self) -> AsyncGenerator[TaskSnapshot[R_co]]:
        """Yield how the task ended."""
        yield await self.snapshot()
