"""What an agent records of its runs, and in which order."""

from typing import Any

import pytest
from celery import states
from celery.app.task import Context

from aioabort.models import AbortRequest
from aioabort.postgres.request_store import RequestStore
from aioabort.timing import Timing
from aioabort.worker.agent.outcome_reporter import OutcomeReporter
from aioabort.worker.run import Run
from tests.support.runs import RecordingSupervisor


async def test_seen_before_outcome(
    store: RequestStore, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a request has an outcome, it is known whether the task saw it.

    record_seen() for another task | the task sees its abort and ends | its outcome is
    recorded, but not that it saw the abort | a receipt's seen() returns None
    """
    requests = await store.request_aborts(["another", task_id])
    first, second = requests["another"], requests[task_id]
    reporter = OutcomeReporter(Timing(report_gap=0.0))
    record_seen = store.record_seen

    async def record_while_another_ends(*args: Any) -> Any:
        monkeypatch.undo()
        recorded = await record_seen(*args)
        see_and_end(reporter, second)
        return recorded

    monkeypatch.setattr(store, "record_seen", record_while_another_ends)
    reporter.add_seen(seeing_run(first))
    await reporter.send(store)
    pending = (await store.read_aborts([task_id]))[task_id].request
    assert pending is not None
    assert (pending.outcome is None) or (pending.seen_at is not None)

    await reporter.send(store)
    settled = (await store.read_aborts([task_id]))[task_id].request
    assert settled is not None
    assert settled.outcome == "returned"
    assert settled.seen_at is not None


def seeing_run(request: AbortRequest) -> Run:
    run = Run(Context(id=request.task_id, hostname="w@h"), RecordingSupervisor())
    run.abort(request)
    assert run.is_aborted()
    return run


def see_and_end(reporter: OutcomeReporter, request: AbortRequest) -> None:
    run = seeing_run(request)
    reporter.add_seen(run)
    run.mark_ended(states.SUCCESS)
    assert run.outcome is not None
    reporter.add_outcome(request, run.outcome, run.ended_at)
