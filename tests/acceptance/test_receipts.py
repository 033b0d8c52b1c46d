"""What a receipt tells of a request while real workers deal with it."""

from typing import Any

import pytest

from tests.support.waiting import BOUND

from .harness import Stage

pytestmark = pytest.mark.parametrize(
    "worker", ["prefork-notified", "threads-notified", "prefork-polling"], indirect=True
)


@pytest.mark.parametrize(
    ("task", "outcome"),
    [("raising", "aborted"), ("returning", "returned"), ("failing", "failed")],
)
async def test_a_task_that_looks(stage: Stage, task: str, outcome: str) -> None:
    """It notices, where it runs; and then it ends, in its own way."""
    result = await stage.start(getattr(stage.tasks, task))
    receipt = await result.abort(reason="enough")

    request = await receipt.seen(BOUND)
    assert request is not None
    assert request.seen_at is not None
    assert "pid" in str(request.seen_by)
    assert await receipt.settled(BOUND) == outcome


async def test_a_task_that_never_looks(stage: Stage) -> None:
    """It ends without having noticed."""
    result = await stage.start(stage.tasks.gated)
    receipt = await result.abort()
    stage.place.open("end")

    assert await receipt.seen(BOUND) is None
    assert await receipt.settled(BOUND) == "too_late"


async def test_a_task_of_celerys_own_class(stage: Stage) -> None:
    """No outcome is recorded for it; after a while, its end is enough."""
    async with stage.occupied():
        result = stage.publish(stage.tasks.plain)
        receipt = await result.abort()

    assert await receipt.settled(BOUND) == "too_late"


async def test_a_queued_task(stage: Stage) -> None:
    """It notices before its body, which never begins."""
    async with stage.occupied():
        result = stage.publish(stage.tasks.raising)
        receipt = await result.abort()

    request: Any = await receipt.seen(BOUND)
    assert request.seen_at is not None
    assert await receipt.settled(BOUND) == "aborted"
    assert "body" not in stage.place


async def test_many_at_once(stage: Stage) -> None:
    """Every receipt of a bulk abort hears of its own task."""
    async with stage.occupied():
        results = [
            stage.scene(str(number)).publish(stage.tasks.raising)
            for number in range(20)
        ]
        receipts = await stage.client.abort(results)

    assert [await receipt.settled(BOUND) for receipt in receipts] == ["aborted"] * 20
