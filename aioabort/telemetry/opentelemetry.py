"""Metrics and spans by OpenTelemetry.

The trace context of an abort request is stored with it, so that the spans of the worker
belong to the trace of the client. All durations of a request's stages are measured by
PostgreSQL's clock.
"""

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Final
from weakref import ReferenceType, ref

from opentelemetry import metrics, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from aioabort.models import Stage
from aioabort.telemetry import Side, WaiterCount

if not hasattr(metrics.Meter, "create_gauge"):
    raise ImportError("aioabort needs opentelemetry-api 1.30 or later")

NAME: Final = "aioabort"

#: In seconds; OpenTelemetry's default boundaries suit milliseconds.
BUCKETS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)

TRACEPARENT: Final = "traceparent"


class OpenTelemetryInstruments:
    """Metrics and spans; dashboards of users depend on their names."""

    def __init__(self) -> None:
        meter = metrics.get_meter(NAME)
        self._tracer = trace.get_tracer(NAME)
        self._propagator = TraceContextTextMapPropagator()
        self._requests = meter.create_counter(
            "aioabort.requests",
            "{request}",
            "Abort requests; not new: the task had ended or was aborted before",
        )
        self._time_to_seen = _seconds(
            meter,
            "aioabort.time_to_seen",
            "From an abort request until the task saw it",
        )
        self._time_to_stop = _seconds(
            meter, "aioabort.time_to_stop", "From an abort request to the task's end"
        )
        self._ignored = meter.create_counter(
            "aioabort.ignored",
            "{request}",
            "Abort requests whose task ended without having checked",
        )
        self._mode = meter.create_gauge(
            "aioabort.notified",
            "1",
            "1 if notifications arrive, 0 if only the poll finds changes",
        )
        self._reconnects = meter.create_counter(
            "aioabort.reconnects",
            "{connection}",
            "Connections that failed and are opened again",
        )
        self._poll_duration = _seconds(
            meter, "aioabort.poll.duration", "One query of the polled tasks"
        )
        # Read at each export: to count ten thousand waiters one by one would cost more
        # than to wake them.
        meter.create_observable_up_down_counter(
            "aioabort.waiters",
            [self._observe_waiters],
            "{waiter}",
            "Coroutines that await a task",
        )
        # Each operation on this dict is atomic. A lock could be held by the exporter's
        # thread during a fork, and the child would wait for it for ever.
        self._waiters: dict[int, ReferenceType[WaiterCount]] = {}

    @contextmanager
    def requesting(self, task_ids: Sequence[str]) -> Generator[str | None]:
        """Trace an abort request; yield the ``traceparent`` to store with it, or None."""
        attributes: dict[str, str | int] = {"aioabort.tasks": len(task_ids)}
        if len(task_ids) == 1:
            attributes["aioabort.task_id"] = task_ids[0]
        with self._tracer.start_as_current_span(
            "aioabort.request", kind=trace.SpanKind.PRODUCER, attributes=attributes
        ):
            carrier: dict[str, str] = {}
            self._propagator.inject(carrier)
            yield carrier.get(TRACEPARENT)

    def requested(self, asked: int, new: int) -> None:
        """Count *asked* abort requests; *new* is the number that was stored."""
        if new:
            self._requests.add(new, {"new": True})
        if asked > new:
            self._requests.add(asked - new, {"new": False})

    def seen(self, stages: Iterable[Stage]) -> None:
        """Record that tasks saw their abort requests."""
        for stage in stages:
            self._time_to_seen.record(stage.after)
            self._trace("aioabort.notice", stage)

    def stopped(self, stages: Iterable[Stage]) -> None:
        """Record the outcomes of abort requests."""
        for stage in stages:
            outcome = {"outcome": str(stage.outcome)}
            self._time_to_stop.record(stage.after, outcome)
            if stage.outcome in {"too_late", "unkillable"}:
                self._ignored.add(1)
            self._trace("aioabort.stop", stage)

    def mode(self, side: Side, mode: str) -> None:
        """Record whether *side* gets notifications or only polls."""
        self._mode.set(int(mode == "notify"), {"side": side})

    def reconnecting(self, user: str) -> None:
        """Count a lost connection of *user*, which will be opened again."""
        self._reconnects.add(1, {"user": user})

    @contextmanager
    def polling(self, side: Side) -> Generator[None]:
        """Measure the duration of the query in the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            self._poll_duration.record(seconds, {"side": side})

    def count_waiters(self, waiters: WaiterCount) -> None:
        """Include *waiters* in each export of the metrics until they are deleted."""
        key = id(waiters)
        self._waiters[key] = ref(waiters, lambda _: self._waiters.pop(key, None))

    def _observe_waiters(self, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        clients = [find() for find in list(self._waiters.values())]
        return [
            metrics.Observation(sum(each.size for each in clients if each is not None))
        ]

    def _trace(self, name: str, stage: Stage) -> None:
        """Add a span that begins at the abort request, if the request was traced."""
        if stage.traceparent is None:
            return
        attributes = {"aioabort.task_id": stage.task_id}
        if stage.outcome is not None:
            attributes["aioabort.outcome"] = stage.outcome
        # The end is by this machine's clock, the duration by PostgreSQL's.
        end = time.time_ns() - round(stage.ago * 1e9)
        start = end - round(stage.after * 1e9)
        parent = self._propagator.extract({TRACEPARENT: stage.traceparent})
        kind = trace.SpanKind.CONSUMER
        span = self._tracer.start_span(name, parent, kind, attributes, start_time=start)
        span.end(end)


def _seconds(meter: metrics.Meter, name: str, description: str) -> metrics.Histogram:
    return meter.create_histogram(
        name, "s", description, explicit_bucket_boundaries_advisory=BUCKETS
    )
