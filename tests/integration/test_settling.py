"""Abort requests of tasks whose own process could not record the outcome."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from celery import Celery

from aioabort.models import Outcome
from aioabort.postgres.pool import open_pool
from aioabort.postgres.request_store import RequestStore, open_request_store
from aioabort.settings import read_settings

if TYPE_CHECKING:
    import asyncpg


@pytest.mark.parametrize(
    ("said", "state", "seen", "outcome"),
    [
        ("killed", "REVOKED", False, "killed"),
        ("killed", "REVOKED", True, "killed"),
        ("killed", "ABORTED", True, "killed"),  # it stores no result
        ("too_late", "REVOKED", False, "too_late"),
        ("aborted", "REVOKED", False, "aborted"),
        ("failed", "FAILURE", True, "failed"),
        ("failed", "FAILURE", False, "too_late"),
        ("failed", "ABORTED", False, "too_late"),
        # It had ended before it was killed: the stored state is the right one.
        ("killed", "SUCCESS", True, "returned"),
        ("killed", "SUCCESS", False, "too_late"),
        ("killed", "FAILURE", True, "failed"),
        ("failed", "SUCCESS", True, "returned"),
    ],
)
async def test_outcome(
    store: RequestStore,
    database: "asyncpg.Connection[Any]",
    task_id: str,
    *,
    said: Outcome,
    state: str,
    seen: bool,
    outcome: str,
) -> None:
    """The stored state and whether the task saw its request decide the outcome."""
    request = (await store.request_aborts([task_id]))[task_id]
    if seen:
        await store.record_seen([request], [0.0], "w@h")
    await database.execute(
        "UPDATE celery_taskmeta SET status = $1 WHERE task_id = $2", state, task_id
    )
    [settled] = await store.settle_requests({task_id: said})
    assert (settled.task_id, settled.outcome) == (task_id, outcome)
    assert settled.outcome_at is not None


async def test_what_was_recorded_before_stays(
    store: RequestStore, task_id: str
) -> None:
    """The outcome that the task's own process recorded stays; other ids have no request."""
    request = (await store.request_aborts([task_id]))[task_id]
    await store.record_outcomes([request], ["aborted"], [0.0])
    assert (
        await store.settle_requests({task_id: "killed", str(uuid4()): "killed"}) == []
    )
    row = (await store.read_aborts([task_id]))[task_id]
    assert row.request is not None
    assert row.request.outcome == "aborted"


async def test_results_elsewhere(
    empty_dsn: str, make_app: Callable[..., Celery]
) -> None:
    """Without Celery's row, only whether the task saw its request decides."""
    app = make_app(empty_dsn, aioabort_dsn=empty_dsn)
    settings = read_settings(app)
    async with open_pool(settings.dsn, 1, settings.timing) as pool:
        store = await open_request_store(pool, settings)
        requests = await store.request_aborts(["a", "b", "c"])
        await store.record_seen([requests["a"]], [0.0], "w@h")
        settled = await store.settle_requests(
            {"a": "failed", "b": "failed", "c": "killed"}
        )
    outcomes = {request.task_id: request.outcome for request in settled}
    assert outcomes == {"a": "failed", "b": "too_late", "c": "killed"}
