"""Metrics and traces by OpenTelemetry, if opentelemetry-api is installed."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Literal, Protocol

from aioabort.models import Stage

Side = Literal["client", "worker"]


class WaiterCount(Protocol):
    """The waiters of one client."""

    #: The number of waiters.
    size: int


class Instruments(Protocol):
    """The metrics and spans of aioabort."""

    def requesting(self, task_ids: Sequence[str]) -> AbstractContextManager[str | None]:
        """Trace an abort request; yield the ``traceparent`` to store with it, or None."""
        ...

    def requested(self, asked: int, new: int) -> None:
        """Count *asked* abort requests; *new* is the number that was stored."""

    def seen(self, stages: Iterable[Stage]) -> None:
        """Record that tasks saw their abort requests."""

    def stopped(self, stages: Iterable[Stage]) -> None:
        """Record the outcomes of abort requests."""

    def mode(self, side: Side, mode: Literal["notify", "poll"]) -> None:
        """Record whether *side* gets notifications or only polls."""

    def reconnecting(self, user: str) -> None:
        """Count a lost connection of *user*, which will be opened again."""

    def polling(self, side: Side) -> AbstractContextManager[object]:
        """Measure the duration of the query in the block."""
        ...

    def count_waiters(self, waiters: WaiterCount) -> None:
        """Include *waiters* in each export of the metrics until they are deleted."""


class NoInstruments:
    """Records nothing."""

    def requesting(self, task_ids: Sequence[str]) -> AbstractContextManager[None]:  # noqa: ARG002
        """Trace nothing."""
        return nullcontext()

    def requested(self, asked: int, new: int) -> None:
        """Count nothing."""

    def seen(self, stages: Iterable[Stage]) -> None:
        """Record nothing."""

    def stopped(self, stages: Iterable[Stage]) -> None:
        """Record nothing."""

    def mode(self, side: Side, mode: Literal["notify", "poll"]) -> None:
        """Record nothing."""

    def reconnecting(self, user: str) -> None:
        """Count nothing."""

    def polling(self, side: Side) -> AbstractContextManager[None]:  # noqa: ARG002
        """Measure nothing."""
        return nullcontext()

    def count_waiters(self, waiters: WaiterCount) -> None:
        """Count nothing."""


@cache
def instruments() -> Instruments:
    """Return the instruments of this process, created at the first call."""
    try:
        from aioabort.telemetry.opentelemetry import (  # noqa: PLC0415 (may be missing)
            OpenTelemetryInstruments,
        )
    except ImportError:
        return NoInstruments()
    return OpenTelemetryInstruments()
