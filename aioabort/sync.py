"""The client's methods for code without an event loop: Django views, scripts, shells.

They run on one event loop in a thread of this process, started at first use. A forked
child starts another.
"""

import asyncio
import atexit
import threading
from collections.abc import Awaitable, Callable, Iterable
from functools import cache
from typing import Any, Final, TypeVar, overload

from celery import Celery
from celery.result import AsyncResult, ResultSet

from aioabort.celery_compat import resolve_current_app
from aioabort.client.client import AbortClient
from aioabort.client.result import client_of_running_loop
from aioabort.client.targets import app_of
from aioabort.concurrency.gevent import refuse_eventlet
from aioabort.concurrency.loop_thread import LoopEnded, LoopThread
from aioabort.concurrency.per_process import PerProcess
from aioabort.exceptions import AioabortError, ClientClosed
from aioabort.models import AbortReceipt, TaskSnapshot

__all__ = ["abort", "close", "snapshot", "wait"]

#: Seconds that closing the connections may delay the end of the process.
STOP_TIMEOUT = 2.0

R = TypeVar("R")
T = TypeVar("T")


# A string is an iterable of strings, too, but the first signature comes first.
@overload
def abort(  # type: ignore[overload-overlap]
    target: "str | AsyncResult[Any]",
    *,
    app: Celery | None = None,
    reason: str | None = None,
    requested_by: str | None = None,
    grace: float | None = None,
) -> AbortReceipt: ...
@overload
def abort(
    target: "ResultSet | Iterable[str | AsyncResult[Any] | ResultSet]",
    *,
    app: Celery | None = None,
    reason: str | None = None,
    requested_by: str | None = None,
    grace: float | None = None,
) -> list[AbortReceipt]: ...
def abort(
    target: Any,
    *,
    app: Celery | None = None,
    reason: str | None = None,
    requested_by: str | None = None,
    grace: float | None = None,
) -> AbortReceipt | list[AbortReceipt]:
    """Abort tasks as ``AbortClient.abort()`` does.

    *app* defaults to the app of the first result in *target*, or Celery's current app.
    """

    async def act(client: Any) -> AbortReceipt | list[AbortReceipt]:
        receipts: AbortReceipt | list[AbortReceipt] = await client.abort(
            target, reason=reason, requested_by=requested_by, grace=grace
        )
        return receipts

    return _run(app or app_of(target) or resolve_current_app(), act)


@overload
def wait(
    target: "AsyncResult[R]",
    timeout: float | None = None,
    *,
    app: Celery | None = None,
) -> R: ...
@overload
def wait(
    target: str, timeout: float | None = None, *, app: Celery | None = None
) -> Any: ...
def wait(
    target: Any, timeout: float | None = None, *, app: Celery | None = None
) -> Any:
    """Await a task as ``AbortClient.wait()`` does; *app* as in ``abort()``."""
    return _run(
        app or app_of(target) or resolve_current_app(),
        lambda client: client.wait(target, timeout),
    )


@overload
def snapshot(
    target: "AsyncResult[R]", *, app: Celery | None = None
) -> TaskSnapshot[R]: ...
@overload
def snapshot(target: str, *, app: Celery | None = None) -> TaskSnapshot[Any]: ...
def snapshot(target: Any, *, app: Celery | None = None) -> TaskSnapshot[Any]:
    """Read a task as ``AbortClient.snapshot()`` does; *app* as in ``abort()``."""
    return _run(
        app or app_of(target) or resolve_current_app(),
        lambda client: client.snapshot(target),
    )


def close() -> None:
    """Close the connections of this process; the next call opens new ones.

    Calls in other threads that still wait raise ClientClosed. The end of the process
    closes the connections, too.
    """
    for thread in _threads.take_all().values():
        thread.stop(STOP_TIMEOUT)


_threads: Final[PerProcess[None, LoopThread]] = PerProcess()


def _run(app: Celery, act: Callable[[AbortClient], Awaitable[T]]) -> T:
    async def with_client() -> T:
        return await act(await client_of_running_loop(app))

    _refuse_running_loop()
    refuse_eventlet()
    try:
        return _threads.get(None, _start_thread).call(with_client)
    except AioabortError:
        raise
    except RuntimeError as error:
        # From Python 3.12 on, no thread can be started when atexit functions are called.
        if isinstance(error, LoopEnded) or not threading.main_thread().is_alive():
            raise ClientClosed(
                "aioabort.sync was closed, or the process is going down"
            ) from error
        raise


def _start_thread() -> LoopThread:
    _close_with_process()
    return LoopThread("aioabort-sync", asyncio.Event.wait)


@cache
def _close_with_process() -> None:
    atexit.register(close)


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise AioabortError(
        "aioabort.sync blocks, and an event loop runs in this thread: "
        "await the methods of the result or of an AbortClient instead"
    )
