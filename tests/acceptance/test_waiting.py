"""No wait for an aborted task goes on for ever."""

import asyncio
import statistics
import time

import pytest

from aioabort import ResultMissing, TaskAborted, WaitTimeout
from tests.support.waiting import BOUND

from .harness import Stage


async def test_waiter_hears_of_an_abort(stage: Stage) -> None:
    """A wait that began before the abort ends with it, by TaskAborted."""
    result = await stage.start(stage.tasks.raising)
    with pytest.raises(WaitTimeout):
        await result.wait(0.05)
    waiters = [
        asyncio.create_task(stage.client.result(result.id).wait(BOUND))
        for _ in range(2)
    ]
    # Both begin to wait.
    await asyncio.sleep(0)
    await result.abort(reason="enough", requested_by="ann")

    for waiter in waiters:
        with pytest.raises(TaskAborted, match=r"by ann: enough"):
            await waiter

    assert (await result.snapshot()).is_finished
    with pytest.raises(TaskAborted, match=r"by ann: enough"):
        await result


async def test_waiter_gets_the_value_of_a_task_that_stopped(stage: Stage) -> None:
    """A wait that began before the abort ends with the value that was returned."""
    result = await stage.start(stage.tasks.returning)
    waiter = asyncio.create_task(result.wait(BOUND))
    await asyncio.sleep(0)
    await result.abort()

    assert await waiter == "stopped"


async def test_waiter_for_an_ignored_result_hears_of_an_abort(stage: Stage) -> None:
    """Without a result, a wait ends by TaskAborted all the same."""
    result = await stage.start(stage.tasks.ignored_raising)
    waiter = asyncio.create_task(result.wait(BOUND))
    await asyncio.sleep(0)
    await result.abort(reason="enough")

    with pytest.raises(TaskAborted, match="enough"):
        await waiter
    # Celery's own ``get()`` would wait for ever on ABORTED.
    assert (await result.snapshot()).state == "REVOKED"
    assert (await stage.settled(result)).outcome == "aborted"


async def test_waiter_for_an_ignored_result_hears_of_a_return(stage: Stage) -> None:
    """Without a result, a wait for a task that saw the abort and returned says so.

    Closes: no SUCCESS is stored, and Celery's row says ABORTED for ever.
    """
    result = await stage.start(stage.tasks.ignored_returning)
    waiter = asyncio.create_task(result.wait(BOUND))
    await asyncio.sleep(0)
    await result.abort()

    with pytest.raises(ResultMissing, match="returned"):
        await waiter
    assert (await stage.settled(result)).outcome == "returned"


async def test_waiter_for_a_plain_task_gets_its_value(stage: Stage) -> None:
    """A task of Celery's own class, which sends no notification, can be awaited."""
    result = await stage.start(stage.tasks.plain)

    assert await result.wait(BOUND) is None


@pytest.mark.parametrize(
    "worker", ["prefork-notified", "threads-notified", "solo-notified"], indirect=True
)
async def test_notification_is_faster_than_the_poll(stage: Stage) -> None:
    """With notifications, an abort is seen and its end is known long before a poll."""
    seconds = [await seconds_to_abort(stage) for _ in range(3)]

    # Without them, a poll comes 0.8 s after the latest look or later.
    assert statistics.median(seconds) < 0.5


async def seconds_to_abort(stage: Stage) -> float:
    runs = len(stage.place.lines("body"))
    result = stage.publish(stage.tasks.returning)
    await stage.place.reached("body", times=runs + 1)
    start = time.perf_counter()
    await result.abort()
    assert await result.wait(BOUND) == "stopped"
    return time.perf_counter() - start
