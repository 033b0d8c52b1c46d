"""The result backend of a role that lacks a right: its errors, and what stays stored."""

import asyncio
from typing import Any

import pytest
from celery import Celery

from aioabort import AbortClient, StoreError
from aioabort.timing import Timing
from tests.integration.conftest import Stranger
from tests.support.apps import MakeApp
from tests.support.databases import query

#: What a worker needs, and how PostgreSQL calls it when it is missing.
NEEDED = {
    "SELECT ON celery_taskmeta": "table celery_taskmeta",
    "INSERT ON celery_taskmeta": "table celery_taskmeta",
    "UPDATE ON celery_taskmeta": "table celery_taskmeta",
    "USAGE ON task_id_sequence": "sequence task_id_sequence",
    "SELECT ON aioabort_request": "table aioabort_request",
    "INSERT ON aioabort_request": "table aioabort_request",
    "UPDATE ON aioabort_request": "table aioabort_request",
}

#: Only abort requests and their outcomes need these.
FOR_REQUESTS = {"INSERT ON aioabort_request", "UPDATE ON aioabort_request"}


def grant(dsn: str, role: str, *rights: str) -> None:
    for right in rights:
        query(dsn, f"GRANT {right} TO {role}")


@pytest.fixture
def backend(dsn: str, make_app: MakeApp, stranger: Stranger) -> Any:
    """The backend of ``stranger``."""
    address = stranger.dsn(dsn)
    app = make_app(
        address, result_backend=f"aioabort+{address}", aioabort_poll_interval=0.1
    )
    return app.backend


@pytest.mark.parametrize("right", sorted(NEEDED.keys() - FOR_REQUESTS))
async def test_right_that_is_taken_away(
    dsn: str, stranger: Stranger, backend: Any, app: Celery, right: str
) -> None:
    """The error names it, nothing is half done, and all goes on when it is given back."""
    grant(dsn, stranger.role, *NEEDED)
    await asyncio.to_thread(backend.store_result, "before", 1, "PROGRESS")
    query(dsn, f"REVOKE {right} FROM {stranger.role}")
    async with AbortClient(app) as client:
        await client.abort("before", reason="why")
        with pytest.raises(StoreError, match=f"denied for {NEEDED[right]}"):
            await asyncio.to_thread(backend.store_result, "task", 2, "SUCCESS")
        assert (await client.snapshot("task")).state == "PENDING"
        before = await client.snapshot("before")
        assert before.state == "ABORTED"
        assert before.request is not None
        assert before.request.is_pending

        grant(dsn, stranger.role, right)
        await asyncio.to_thread(backend.store_result, "task", 2, "SUCCESS")
        assert await client.wait("task", 10) == 2


@pytest.mark.parametrize(
    "right", ["SELECT ON aioabort_request", "SELECT ON celery_taskmeta"]
)
async def test_right_that_was_never_given(
    dsn: str,
    stranger: Stranger,
    backend: Any,
    right: str,
) -> None:
    """The first call fails at once, and a later one works without a restart.

    agent: connects | call: waits for that | server: refuses | call: raises that
    """
    backend.app.conf.aioabort_timing = Timing(ask_timeout=60.0)
    grant(dsn, stranger.role, *(NEEDED.keys() - {right}))
    async with asyncio.timeout(20):
        with pytest.raises(StoreError, match=f"denied for {NEEDED[right]}"):
            await asyncio.to_thread(backend.store_result, "task", 1, "SUCCESS")

        grant(dsn, stranger.role, right)
        while True:
            try:
                await asyncio.to_thread(backend.store_result, "task", 1, "SUCCESS")
                break
            except StoreError:
                await asyncio.sleep(0.05)
    assert await asyncio.to_thread(backend.get_result, "task") == 1


GROUPS = (
    "SELECT, INSERT, UPDATE ON celery_tasksetmeta",
    "USAGE ON taskset_id_sequence",
)


def test_groups(dsn: str, stranger: Stranger, backend: Any) -> None:
    """To save one takes rights of its own, and the error says which are missing."""
    grant(dsn, stranger.role, *NEEDED)
    group = backend.app.GroupResult("group", [backend.app.AsyncResult("task")])
    for right, name in zip(
        GROUPS, ("table celery_tasksetmeta", "sequence"), strict=True
    ):
        with pytest.raises(StoreError, match=f"denied for {name}"):
            group.save()
        grant(dsn, stranger.role, right)
    group.save()
    assert backend.restore_group("group").as_tuple() == group.as_tuple()
