"""What is measured and traced, in the words of OpenTelemetry.

A request keeps the trace that it was made in, so that its notice and its end, which
another process sees, belong to the same one. How long they took is measured by
PostgreSQL's clock alone.
"""

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Final, Protocol
from weakref import WeakSet

from opentelemetry import metrics, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from aioabort.records import Stage

if not hasattr(metrics.Meter, "create_gauge"):
    raise ImportError("opentelemetry-api before 1.30 lacks what is needed here")

NAME: Final = "aioabort"

#: Seconds: the default boundaries are made for milliseconds.
BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)

TRACEPARENT: Final = "traceparent"


class Hub(Protocol):
    """Where tasks are awaited."""

    #: How many wait there.
    size: int


class Instruments:
    """The metrics and spans, under the names that a user's dashboard knows."""

    def __init__(self) -> None:
        meter = metrics.get_meter(NAME)
        self._tracer = trace.get_tracer(NAME)
        self._propagator = TraceContextTextMapPropagator()
        self._requests = meter.create_counter(
            "aioabort.requests",
            "{request}",
            "Tasks that were asked to stop; not new: had ended, or were asked before",
        )
        self._time_to_seen = _seconds(
            meter, "aioabort.time_to_seen", "From a request to the task's notice of it"
        )
        self._time_to_stop = _seconds(
            meter, "aioabort.time_to_stop", "From a request to the end of its task"
        )
        self._ignored = meter.create_counter(
            "aioabort.ignored",
            "{request}",
            "Requests whose tasks ended without having looked",
        )
        self._mode = meter.create_gauge(
            "aioabort.notified",
            "1",
            "1 if notifications arrive, 0 if there is only the poll",
        )
        self._reconnects = meter.create_counter(
            "aioabort.reconnects",
            "{connection}",
            "Connections that failed and are tried again",
        )
        self._poll_duration = _seconds(
            meter, "aioabort.poll.duration", "One look at what is watched"
        )
        # Asked for by whoever exports it: to count each of ten thousand would cost more
        # than to wake them up.
        meter.create_observable_up_down_counter(
            "aioabort.waiters",
            [self._count_waiters],
            "{waiter}",
            "Who awaits a task at present",
        )
        self._hubs = WeakSet[Hub]()
        self._lock = Lock()

    @contextmanager
    def requesting(self, task_ids: Sequence[str]) -> Generator[str | None]:
        """Trace a request; the block gets the trace to be stored with it, if any."""
        facts: dict[str, str | int] = {"aioabort.tasks": len(task_ids)}
        if len(task_ids) == 1:
            facts["aioabort.task_id"] = task_ids[0]
        with self._tracer.start_as_current_span(
            "aioabort.request", kind=trace.SpanKind.PRODUCER, attributes=facts
        ):
            carrier: dict[str, str] = {}
            self._propagator.inject(carrier)
            yield carrier.get(TRACEPARENT)

    def requested(self, asked: int, new: int) -> None:
        """Count the requests for *asked* tasks, of which *new* are new."""
        if new:
            self._requests.add(new, {"new": True})
        if asked > new:
            self._requests.add(asked - new, {"new": False})

    def seen(self, stages: Iterable[Stage]) -> None:
        """Record that tasks noticed their requests."""
        for stage in stages:
            self._time_to_seen.record(stage.after)
            self._trace("aioabort.notice", stage)

    def stopped(self, stages: Iterable[Stage]) -> None:
        """Record how tasks that had been asked to stop ended."""
        for stage in stages:
            outcome = {"outcome": str(stage.outcome)}
            self._time_to_stop.record(stage.after, outcome)
            if stage.outcome in {"too_late", "unkillable"}:
                self._ignored.add(1)
            self._trace("aioabort.stop", stage)

    def mode(self, side: str, mode: str) -> None:
        """Record whether *side* is notified, or polls only."""
        self._mode.set(int(mode == "notify"), {"side": side})

    def reconnecting(self, user: str) -> None:
        """Count a connection of *user*'s that is to be made anew."""
        self._reconnects.add(1, {"user": user})

    def looked(self, side: str, seconds: float) -> None:
        """Record how long a look took."""
        self._poll_duration.record(seconds, {"side": side})

    def waiting_at(self, hub: Hub) -> None:
        """Count those who wait at *hub*, as long as it exists."""
        with self._lock:
            self._hubs.add(hub)

    def _count_waiters(self, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        with self._lock:
            hubs = list(self._hubs)
        return [metrics.Observation(sum(hub.size for hub in hubs))]

    def _trace(self, name: str, stage: Stage) -> None:
        """Add a span that begins with the request; none if that was not traced."""
        if stage.traceparent is None:
            return
        facts = {"aioabort.task_id": stage.task_id}
        if stage.outcome is not None:
            facts["aioabort.outcome"] = stage.outcome
        # The moments of this machine's clock, with the server's time between them.
        end = time.time_ns() - round(stage.ago * 1e9)
        start = end - round(stage.after * 1e9)
        parent = self._propagator.extract({TRACEPARENT: stage.traceparent})
        kind = trace.SpanKind.CONSUMER
        span = self._tracer.start_span(name, parent, kind, facts, start_time=start)
        span.end(end)


def _seconds(meter: metrics.Meter, name: str, what: str) -> metrics.Histogram:
    return meter.create_histogram(
        name, "s", what, explicit_bucket_boundaries_advisory=BUCKETS
    )
