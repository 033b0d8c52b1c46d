"""One trace over processes: the request in one, the notice and the end in others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from aioabort import TaskAborted
from tests.support.waiting import BOUND, until

from .conftest import StartWorker, follow_log
from .harness import Stage, Worker


@pytest.fixture(scope="session")
def spans_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that the worker's spans go to."""
    return tmp_path_factory.mktemp("spans") / "spans"


@pytest.fixture(scope="session")
def tracing_worker(start_worker: StartWorker, spans_file: Path) -> Worker:
    """A worker whose tasks only aioabort traces."""
    return start_worker(
        "prefork",
        test_spans=str(spans_file),
        aioabort_poll_interval=0.2,
        worker_enable_remote_control=True,
    )


@pytest.fixture
def worker(request: pytest.FixtureRequest, tracing_worker: Worker) -> Worker:
    """The worker, as the other fixtures want it."""
    follow_log(request, tracing_worker)
    return tracing_worker


@pytest.fixture
def spans_of_worker(spans_file: Path) -> Callable[[], dict[str, Any]]:
    """Reads the worker's spans of this test, by their names."""
    known = len(spans_file.read_text().splitlines()) if spans_file.exists() else 0

    def read() -> dict[str, Any]:
        lines = spans_file.read_text().splitlines() if spans_file.exists() else []
        return {span["name"]: span for span in map(json.loads, lines[known:])}

    return read


async def test_one_trace(
    stage: Stage,
    exporter: InMemorySpanExporter,
    spans_of_worker: Callable[[], dict[str, Any]],
) -> None:
    """All three are there, and the worker's are children of the client's."""
    exporter.clear()
    result = await stage.start(stage.tasks.raising)
    await result.abort(reason="why")
    with pytest.raises(TaskAborted):
        await result.wait(BOUND)
    await until(lambda: "aioabort.stop" in spans_of_worker())

    [request] = exporter.get_finished_spans()
    assert request.name == "aioabort.request"
    spans = spans_of_worker()
    assert spans.keys() == {"aioabort.notice", "aioabort.stop"}
    for span in spans.values():
        assert int(span["context"]["trace_id"], 16) == request.context.trace_id
        assert int(span["parent_id"], 16) == request.context.span_id
        assert span["attributes"]["aioabort.task_id"] == result.id
    assert spans["aioabort.stop"]["attributes"]["aioabort.outcome"] == "aborted"


async def test_a_kill_is_in_the_trace(
    stage: Stage,
    exporter: InMemorySpanExporter,
    spans_of_worker: Callable[[], dict[str, Any]],
) -> None:
    """The process that ran the task tells nothing any more; the worker's main one does."""
    exporter.clear()
    result = await stage.start(stage.tasks.gated)
    await result.abort(grace=0)
    with pytest.raises(TaskAborted):
        await result.wait(BOUND)
    await until(lambda: "aioabort.stop" in spans_of_worker())

    [request] = exporter.get_finished_spans()
    [stop] = spans_of_worker().values()
    assert int(stop["context"]["trace_id"], 16) == request.context.trace_id
    assert int(stop["parent_id"], 16) == request.context.span_id
    assert stop["attributes"]["aioabort.outcome"] == "killed"
