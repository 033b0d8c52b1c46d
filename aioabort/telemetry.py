"""Metrics and traces, if opentelemetry-api is installed; without it, nothing happens."""

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

from aioabort.records import Stage

try:
    from aioabort.instruments import Instruments
except ImportError:
    _instruments = None
else:
    _instruments = Instruments()

if TYPE_CHECKING:
    from aioabort.instruments import Hub

P = ParamSpec("P")
R = TypeVar("R")

Side = Literal["client", "worker"]


def requesting(task_ids: Sequence[str]) -> AbstractContextManager[str | None]:
    """Trace a request; the block gets the trace to be stored with it, if any."""
    return nullcontext() if _instruments is None else _instruments.requesting(task_ids)


def requested(asked: int, new: int) -> None:
    """Count the requests for *asked* tasks, of which *new* are new."""
    if _instruments is not None:
        _instruments.requested(asked, new)


def seen(stages: Iterable[Stage]) -> None:
    """Record that tasks noticed their requests."""
    if _instruments is not None:
        _instruments.seen(stages)


def stopped(stages: Iterable[Stage]) -> None:
    """Record how tasks that had been asked to stop ended."""
    if _instruments is not None:
        _instruments.stopped(stages)


def mode(side: Side, mode: Literal["notify", "poll"]) -> None:
    """Record whether *side* is notified, or polls only."""
    if _instruments is not None:
        _instruments.mode(side, mode)


def reconnecting(user: str) -> None:
    """Count a connection of *user*'s that is to be made anew."""
    if _instruments is not None:
        _instruments.reconnecting(user)


def waiting_at(hub: "Hub") -> None:
    """Count those who wait at *hub*, whenever that is asked for."""
    if _instruments is not None:
        _instruments.waiting_at(hub)


def timed(
    side: Side,
) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
    """Measure how long each look takes; without OpenTelemetry, change nothing."""

    def decorate(look: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        instruments = _instruments
        if instruments is None:
            return look

        @wraps(look)
        async def timed_look(*args: P.args, **kwargs: P.kwargs) -> R:
            start = time.perf_counter()
            try:
                return await look(*args, **kwargs)
            finally:
                instruments.looked(side, time.perf_counter() - start)

        return timed_look

    return decorate
