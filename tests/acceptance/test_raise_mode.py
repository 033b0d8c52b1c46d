"""``abort_mode="raise"``: the abort of a body that never checks."""

import asyncio
import random
from collections.abc import Callable

import pytest

from aioabort import AbortableAsyncResult
from tests.support.waiting import BOUND

from .conftest import follow_log
from .harness import Stage, Worker

in_main_thread = pytest.mark.parametrize(
    "worker", ["prefork-notified", "solo-notified"], indirect=True
)

WORKERS = ["prefork-notified", "threads-notified", "solo-notified"]

#: The number of tasks in each pool that are aborted near their end.
BRIEF = 100


@pytest.fixture(params=WORKERS)
def worker(request: pytest.FixtureRequest, workers: Callable[[str], Worker]) -> Worker:
    """Each worker in turn."""
    worker = workers(request.param)
    follow_log(request, worker)
    return worker


async def is_aborted_by(stage: Stage, result: AbortableAsyncResult[object]) -> None:
    """Wait until the task is recorded as aborted by ann."""
    error = await stage.aborted(result)
    assert error.args == ("enough", "ann", result.id)


async def test_body_that_never_looks(stage: Stage) -> None:
    """It is interrupted, cleans up, and is not retried."""
    result = await stage.start(stage.tasks.in_interruptions.computing)
    await result.abort(reason="enough", requested_by="ann")

    await is_aborted_by(stage, result)
    assert len(stage.place.lines("cleaned")) == 1
    assert len(stage.place.lines("runs")) == 1


@in_main_thread
async def test_body_that_sleeps(stage: Stage) -> None:
    """A call that blocks for a minute is interrupted, too."""
    result = await stage.start(stage.tasks.in_interruptions.sleeping)
    await result.abort(reason="enough", requested_by="ann")

    await is_aborted_by(stage, result)
    assert len(stage.place.lines("cleaned")) == 1


async def test_body_that_catches_it(stage: Stage) -> None:
    """``except Exception`` catches it; the value is kept, and it is raised only once."""
    result = await stage.start(stage.tasks.in_interruptions.catching)
    await result.abort(reason="enough", requested_by="ann")

    assert await result.wait(BOUND) == "kept"
    assert (await result.snapshot()).state == "SUCCESS"
    assert (await stage.settled(result)).outcome == "returned"
    assert stage.place.lines("caught") == [
        f"Task '{result.id}' was aborted by ann: enough"
    ]


async def test_library_that_swallows_it(stage: Stage) -> None:
    """The abort that a library has swallowed is raised again."""
    result = await stage.start(stage.tasks.in_interruptions.logging_rows)
    await result.abort(reason="enough", requested_by="ann")

    await is_aborted_by(stage, result)
    assert (await stage.settled(result)).outcome == "aborted"


async def test_long_cleanup(stage: Stage) -> None:
    """The abort is seen while the body cleans up, and does not interrupt that."""
    result = await stage.start(stage.tasks.in_interruptions.cleaning)
    receipt = await result.abort(reason="enough", requested_by="ann")
    assert await receipt.seen(BOUND) is not None
    # Longer than the pause after which the abort is raised again.
    await asyncio.sleep(2)
    stage.place.open("end")

    await is_aborted_by(stage, result)
    assert len(stage.place.lines("cleaned")) == 1


@pytest.mark.parametrize("name", ["late", "calling"])
async def test_body_that_calls_another(stage: Stage, name: str) -> None:
    """The outer body ends, whether the inner one has ended before or with it."""
    result = await stage.start(getattr(stage.tasks.in_interruptions, name))
    await result.abort(reason="enough", requested_by="ann")

    await is_aborted_by(stage, result)
    assert len(stage.place.lines("body")) == 1


@pytest.mark.parametrize("worker", ["threads-notified"], indirect=True)
async def test_abort_in_a_shield(stage: Stage) -> None:
    """The block of a shield is not interrupted; the code after it is."""
    result = await stage.start(stage.tasks.in_interruptions.shielding)
    await result.abort(reason="enough", requested_by="ann")
    # One poll finds both requests, or this one later.
    scene = stage.scene("other")
    other = await scene.start(stage.tasks.in_interruptions.computing)
    await other.abort(reason="enough", requested_by="ann")
    await is_aborted_by(scene, other)
    assert "shield" not in stage.place
    stage.place.open("end")

    await is_aborted_by(stage, result)
    assert "shield" in stage.place
    assert "end of the body" not in stage.place


async def test_abort_before_the_start(stage: Stage) -> None:
    """A task that was aborted before does not begin, as in the other mode."""
    async with stage.occupied():
        result = stage.publish(stage.tasks.in_interruptions.computing)
        await result.abort(reason="enough", requested_by="ann")

    await is_aborted_by(stage, result)
    assert "body" not in stage.place


async def test_aborts_near_the_end(stage: Stage) -> None:
    """Each of many short tasks ends in one way, and none by the abort of another.

    Closes: the exception arrives after the body, in Celery's code or in the next task.
    """
    log = stage.worker.log.stat().st_size
    slots = stage.worker.concurrency
    endings: set[str] = set()
    for first in range(0, BRIEF, slots):
        numbers = range(first, first + slots)
        endings.update(await asyncio.gather(*(ending(stage, n) for n in numbers)))

    # The test covers both ends.
    assert "aborted" in endings
    assert len(endings) > 1
    after = stage.publish(stage.tasks.once)
    assert await after.wait(BOUND) == "done"
    assert b"Traceback" not in stage.worker.log.read_bytes()[log:]


async def ending(stage: Stage, number: int) -> str:
    """Abort a short task at a random moment, and return how it ended."""
    result = stage.publish(stage.tasks.in_interruptions.brief, number)
    await stage.place.reached(f"body-{number}")
    # A delay, and no event: each task is aborted at another moment.
    await asyncio.sleep(random.uniform(0, 0.02))
    receipt = await result.abort(reason="enough", requested_by="ann")
    if receipt.answer == "finished":
        assert await result.wait(BOUND) == number
        return "finished"
    outcome = (await stage.settled(result)).outcome
    if outcome == "aborted":
        await is_aborted_by(stage, result)
    else:
        assert outcome in {"too_late", "returned"}
        assert await result.wait(BOUND) == number
    return str(outcome)
