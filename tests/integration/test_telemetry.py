"""Metrics and spans, as OpenTelemetry's SDK exports them, and how to do without."""

import subprocess
import sys
from typing import Any

import pytest
from anyio import create_task_group, to_thread
from celery import Celery
from opentelemetry import trace
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aioabort import AbortClient
from aioabort.models import Outcome
from aioabort.postgres.request_store import RequestStore
from aioabort.telemetry import instruments
from aioabort.worker.run import Run
from tests.integration.steps import end_run, start_run
from tests.support.apps import MakeApp
from tests.support.databases import celery_url
from tests.support.network import Network
from tests.support.waiting import until

Labels = dict[str, object]


class Meters:
    """What the metrics say, since the test began."""

    def __init__(self, reader: InMemoryMetricReader) -> None:
        self._reader = reader
        self._before = self._read()

    def value(self, name: str, **labels: object) -> float:
        """Return a sum's or a gauge's value, or how often a histogram was recorded."""
        key = (name, frozenset(labels.items()))
        return self._read().get(key, 0) - self._before.get(key, 0)

    async def becomes(self, name: str, value: float, **labels: object) -> None:
        """Wait until the metric has *value*."""
        await until(lambda: self.value(name, **labels) == value)

    def _read(self) -> dict[tuple[str, frozenset[Any]], float]:
        data = self._reader.get_metrics_data()
        return {
            (metric.name, frozenset((point.attributes or {}).items())): (
                getattr(point, "count", None) or getattr(point, "value", 0)
            )
            for resource in (data.resource_metrics if data is not None else ())
            for scope in resource.scope_metrics
            if scope.scope.name == "aioabort"
            for metric in scope.metrics
            for point in metric.data.data_points
        }


@pytest.fixture
def meters(reader: InMemoryMetricReader) -> Meters:
    """The metrics of one test."""
    return Meters(reader)


class Spans:
    """The spans of one test."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter
        exporter.clear()

    def named(self, name: str) -> list[ReadableSpan]:
        """Return those that have ended."""
        return [s for s in self._exporter.get_finished_spans() if s.name == name]

    async def one(self, name: str) -> ReadableSpan:
        """Wait for the one of that name."""
        [span] = await until(lambda: self.named(name))
        return span


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    """The spans of one test."""
    return Spans(exporter)


async def begin(app: Celery, task_id: str) -> Run:
    """Begin a run as a pool's thread does."""
    return await to_thread.run_sync(start_run, app, task_id)


async def aborted(run: Run) -> None:
    """Wait until *run* is aborted, without a check of the task's."""
    await until(lambda: run.aborted)


async def test_requests_are_counted(client: AbortClient, meters: Meters) -> None:
    """New requests are counted apart from requests that changed nothing."""
    await client.abort("a")
    await client.abort("b")
    await client.abort("a")

    assert meters.value("aioabort.requests", new=True) == 2
    assert meters.value("aioabort.requests", new=False) == 1


async def test_an_abort_that_stops_its_task(
    app: Celery, client: AbortClient, meters: Meters
) -> None:
    """The times to the notice and to the end are recorded, once."""
    run = await begin(app, "a")
    await client.abort("a")
    await aborted(run)
    assert run.is_aborted()
    end_run(run)

    await meters.becomes("aioabort.time_to_seen", 1)
    await meters.becomes("aioabort.time_to_stop", 1, outcome="returned")
    assert meters.value("aioabort.ignored") == 0


async def test_an_abort_that_is_ignored(
    app: Celery, client: AbortClient, meters: Meters
) -> None:
    """Tasks that never checked have a counter of their own, for alarms."""
    run = await begin(app, "a")
    await client.abort("a")
    await aborted(run)
    end_run(run)

    await meters.becomes("aioabort.ignored", 1)
    assert meters.value("aioabort.time_to_stop", outcome="too_late") == 1
    assert meters.value("aioabort.time_to_seen") == 0


@pytest.mark.parametrize(
    ("outcome", "ignored"), [("killed", 0), ("aborted", 0), ("too_late", 1)]
)
async def test_an_end_that_the_main_process_records(
    store: RequestStore, meters: Meters, spans: Spans, outcome: Outcome, ignored: int
) -> None:
    """It counts once, as an outcome that the task's own process records."""
    await store.request_aborts(["a"])
    for _ in range(2):
        await store.settle_requests({"a": outcome})

    assert meters.value("aioabort.time_to_stop", outcome=outcome) == 1
    assert meters.value("aioabort.ignored") == ignored
    [request], [stop] = spans.named("aioabort.request"), spans.named("aioabort.stop")
    assert stop.parent is not None
    assert stop.parent.span_id == request.context.span_id


async def test_a_task_that_cannot_be_killed_ignores_its_abort(
    store: RequestStore, meters: Meters
) -> None:
    """The task has not checked, and its pool could not kill it."""
    [request] = (await store.request_aborts(["a"])).values()
    instruments().stopped(await store.record_outcomes([request], ["unkillable"], [0.0]))

    assert meters.value("aioabort.time_to_stop", outcome="unkillable") == 1
    assert meters.value("aioabort.ignored") == 1


@pytest.mark.parametrize("is_notified", [True, False])
async def test_mode(
    dsn: str, make_app: MakeApp, reader: InMemoryMetricReader, is_notified: bool
) -> None:
    """A gauge says whether notifications arrive, on either side."""
    app = make_app(dsn, aioabort_notify=is_notified)
    now = Meters(reader)
    now._before.clear()  # a gauge has no beginning
    async with AbortClient(app):
        await begin(app, "a")
        for side in ("client", "worker"):
            await now.becomes("aioabort.notified", is_notified, side=side)


async def test_outages_and_polls(
    network: Network, make_app: MakeApp, meters: Meters
) -> None:
    """Each lost connection is counted, and each query is timed."""
    app = make_app(network.dsn, aioabort_poll_interval=0.1)
    run = await begin(app, "a")
    assert meters.value("aioabort.poll.duration", side="worker") >= 1
    assert meters.value("aioabort.reconnects", user="aioabort worker") == 0

    await network.cut()
    await until(
        lambda: meters.value("aioabort.reconnects", user="aioabort worker") >= 2
    )
    await network.mend()
    end_run(run)


async def test_waiters(client: AbortClient, meters: Meters) -> None:
    """Waiters are counted as long as they wait."""
    async with create_task_group() as group:
        for _ in range(3):
            group.start_soon(client.wait, "a")
        await meters.becomes("aioabort.waiters", 3)
        # One query for the three of them, and another one if they began during it.
        await until(lambda: meters.value("aioabort.poll.duration", side="client") >= 1)
        group.cancel_scope.cancel()

    assert meters.value("aioabort.waiters") == 0


async def test_one_trace(app: Celery, client: AbortClient, spans: Spans) -> None:
    """The notice and the end are children of the request, which is in the user's trace.

    Their times are the server's; what it keeps may be more exact, but is not later.
    """
    run = await begin(app, "a")
    with trace.get_tracer("user").start_as_current_span("click") as click:
        await client.abort("a")
    await aborted(run)
    assert run.is_aborted()
    end_run(run)

    stop = await spans.one("aioabort.stop")
    [request], [notice] = (
        spans.named("aioabort.request"),
        spans.named("aioabort.notice"),
    )
    assert request.parent is not None
    assert request.parent.span_id == click.get_span_context().span_id
    assert request.attributes == {"aioabort.tasks": 1, "aioabort.task_id": "a"}
    for span in (notice, stop):
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert span.parent.trace_id == click.get_span_context().trace_id
    assert (stop.attributes or {})["aioabort.outcome"] == "returned"

    known = (await client.snapshot("a")).request
    assert known is not None
    assert known.seen_at is not None
    seconds = (known.seen_at - known.requested_at).total_seconds()
    assert notice.end_time is not None
    assert notice.start_time is not None
    measured = (notice.end_time - notice.start_time) / 1e9
    assert seconds - 0.001 < measured < 10


async def test_no_trace_where_there_is_none(
    app: Celery, store: RequestStore, meters: Meters, spans: Spans
) -> None:
    """A request of a client without OpenTelemetry is measured, but not traced."""
    run = await begin(app, "a")
    await store.request_aborts(["a"])
    await store._fetch("UPDATE aioabort_request SET traceparent = NULL")
    await store.notify_workers(["a"])
    await aborted(run)
    end_run(run)

    await meters.becomes("aioabort.ignored", 1)
    assert spans.named("aioabort.stop") == []


async def test_a_garbled_trace_harms_nothing(
    app: Celery, store: RequestStore, meters: Meters, spans: Spans
) -> None:
    """A malformed trace context begins a new trace."""
    run = await begin(app, "a")
    await store.request_aborts(["a"])
    await store._fetch("UPDATE aioabort_request SET traceparent = 'garbage'")
    await store.notify_workers(["a"])
    await aborted(run)
    end_run(run)

    await meters.becomes("aioabort.ignored", 1)
    assert (await spans.one("aioabort.stop")).parent is None


WITHOUT = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
import asyncio
from aioabort import AbortClient
from aioabort.telemetry import NoInstruments, instruments
from celery import Celery

async def main():
    async with AbortClient(Celery("x", backend=sys.argv[1])) as client:
        await client.abort("a")
        try:
            await client.wait("a", 0.01)
        except TimeoutError:
            print((await client.requests())[0].task_id)

assert isinstance(instruments(), NoInstruments)
asyncio.run(main())
"""


def test_without_opentelemetry(dsn: str) -> None:
    """Everything works, and nothing wraps the hot paths."""
    output = subprocess.check_output(
        [sys.executable, "-c", WITHOUT, celery_url(dsn)], text=True
    )
    assert output == "a\n"
