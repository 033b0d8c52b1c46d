"""Ends that a task's own process could not record: what they make of its request."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from celery import Celery

from aioabort.postgres.pool import open_pool
from aioabort.postgres.store import Store, open_store
from aioabort.records import Outcome
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
        # It had ended before it was killed: what is stored is what happened.
        ("killed", "SUCCESS", True, "returned"),
        ("killed", "SUCCESS", False, "too_late"),
        ("killed", "FAILURE", True, "failed"),
        ("failed", "SUCCESS", True, "returned"),
    ],
)
async def test_outcome(
    store: Store,
    database: "asyncpg.Connection[Any]",
    task_id: str,
    *,
    said: Outcome,
    state: str,
    seen: bool,
    outcome: str,
) -> None:
    """Celery's result counts for more than what is said, and a look makes a difference."""
    request = (await store.request([task_id]))[task_id]
    if seen:
        await store.record_seen([request], [0.0], "w@h")
    await database.execute(
        "UPDATE celery_taskmeta SET status = $1 WHERE task_id = $2", state, task_id
    )
    [settled] = await store.settle({task_id: said})
    assert (settled.task_id, settled.outcome) == (task_id, outcome)
    assert settled.outcome_at is not None


async def test_what_was_recorded_before_stays(store: Store, task_id: str) -> None:
    """The task's own process knows best; and who never was asked has no request."""
    request = (await store.request([task_id]))[task_id]
    await store.record_outcomes([request], ["aborted"], [0.0])
    assert await store.settle({task_id: "killed", str(uuid4()): "killed"}) == []
    row = (await store.observe([task_id]))[task_id]
    assert row.request is not None
    assert row.request.outcome == "aborted"


async def test_results_elsewhere(
    empty_dsn: str, make_app: Callable[..., Celery]
) -> None:
    """Where there is no row of Celery's, the look alone makes a difference."""
    app = make_app(empty_dsn, aioabort_dsn=empty_dsn)
    settings = read_settings(app)
    async with open_pool(settings.dsn, max_size=1) as pool:
        store = await open_store(pool, settings)
        requests = await store.request(["a", "b", "c"])
        await store.record_seen([requests["a"]], [0.0], "w@h")
        settled = await store.settle({"a": "failed", "b": "failed", "c": "killed"})
    outcomes = {request.task_id: request.outcome for request in settled}
    assert outcomes == {"a": "failed", "b": "too_late", "c": "killed"}
