"""The client's verbs for code without an event loop: Django views, scripts, shells.

They are carried out on one loop in a thread of this process, started at first use. A
fork inherits neither: the child starts its own.
"""

import asyncio
import atexit
import os
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, Final, TypeVar, cast, overload

from celery import Celery, current_app
from celery.result import AsyncResult, ResultSet

from aioabort import threads
from aioabort.exceptions import AioabortError, ClientClosed
from aioabort.producer.client import AbortClient
from aioabort.producer.shared import client_of_running_loop
from aioabort.records import AbortReceipt, TaskSnapshot

__all__ = ["abort", "close", "snapshot", "wait"]

#: Seconds that the end of the process may be held up by closing connections.
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
    """As ``AbortClient.abort()``; the app is the result's, or the current one."""

    async def act(client: Any) -> AbortReceipt | list[AbortReceipt]:
        receipts: AbortReceipt | list[AbortReceipt] = await client.abort(
            target, reason=reason, requested_by=requested_by, grace=grace
        )
        return receipts

    return _run(app or _app_of(target), act)


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
    """As ``AbortClient.wait()``; the app is the result's, or the current one."""
    return _run(app or _app_of(target), lambda client: client.wait(target, timeout))


@overload
def snapshot(
    target: "AsyncResult[R]", *, app: Celery | None = None
) -> TaskSnapshot[R]: ...
@overload
def snapshot(target: str, *, app: Celery | None = None) -> TaskSnapshot[Any]: ...
def snapshot(target: Any, *, app: Celery | None = None) -> TaskSnapshot[Any]:
    """As ``AbortClient.snapshot()``; the app is the result's, or the current one."""
    return _run(app or _app_of(target), lambda client: client.snapshot(target))


def close() -> None:
    """Close the connections of this process; the next call opens new ones.

    Whoever waits in another thread gets ClientClosed. The end of the process does it,
    too.
    """
    global _background
    with _lock:
        background, _background = _background, None
    if background is not None:
        background.stop()


class Background:
    """A loop in a thread, on which other threads have coroutines run."""

    def __init__(self) -> None:
        self._stop: Final = asyncio.Event()
        # Made here, it takes what is posted before it runs.
        self._loop: Final = threads.new_event_loop()
        self._ended: Final = threads.start(self._run, "aioabort-sync")

    def run(self, act: Callable[[], Awaitable[T]]) -> T:
        """Return what *act* comes to; whatever interrupts the wait cancels it."""
        try:
            return threads.run_on(self._loop, self._ended, act)
        except threads.LoopEnded as error:
            raise ClientClosed(
                "aioabort.sync was closed, or the process is going down"
            ) from error

    def stop(self) -> None:
        """Close all connections and end the thread."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._ended.wait(STOP_TIMEOUT)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        await self._stop.wait()


_background: Background | None = None
_lock = threading.Lock()
_inherited: list[object] = []


def _run(app: Celery, act: Callable[[AbortClient], Awaitable[T]]) -> T:
    async def with_client() -> T:
        return await act(await client_of_running_loop(app))

    _refuse_running_loop()
    threads.refuse_eventlet()
    global _background  # noqa: PLW0603
    with _lock:
        if _background is None:
            _background = Background()
        background = _background
    return background.run(with_client)


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise AioabortError(
        "aioabort.sync blocks, and an event loop runs in this thread: "
        "await the methods of the result or of an AbortClient instead"
    )


def _app_of(target: Any) -> Celery:
    """Return the app of the first result in *target*, or else the current app."""
    results: Iterable[Any] = target if _are_several(target) else [target]
    apps = (item.app for item in results if isinstance(item, AsyncResult | ResultSet))
    app: Any = next(apps, None) or cast("Any", current_app)._get_current_object()
    return cast("Celery", app)


def _are_several(target: object) -> bool:
    # An iterator would be used up; the app of its results has to be named.
    return isinstance(target, Collection) and not isinstance(target, str)


def _stop() -> None:
    if _background is not None:
        _background.stop()


def _forget_parent() -> None:
    # Not even garbage: closing the inherited connections would take the parent's
    # sockets out of the event queue that both processes share.
    global _background, _lock  # noqa: PLW0603
    _inherited.append(_background)
    _background = None
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_parent)
atexit.register(_stop)
