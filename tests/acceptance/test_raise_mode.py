"""``abort_mode="raise"``: the abort of a body that never looks."""

import asyncio
import random
from collections.abc import Callable

import pytest

from aioabort import AbortableAsyncResult, TaskAborted

from .conftest import follow_log
from .harness import BOUND, Stage, Worker

in_main_thread = pytest.mark.parametrize(
    "worker", ["prefork-notified", "solo-notified"], indirect=True
)

WORKERS = ["prefork-notified", "threads-notified", "solo-notified"]

#: The tasks that are aborted round their end, in each pool.
BRIEF = 100


@pytest.fixture(params=WORKERS)
def worker(request: pytest.FixtureRequest, workers: Callable[[str], Worker]) -> Worker:
    """Each worker in turn."""
    worker = workers(request.param)
    follow_log(request, worker)
    return worker


async def is_aborted_by(stage: Stage, result: AbortableAsyncResult[object]) -> None:
    """Wait for the end that an abort has, with all that belongs to it."""
    with pytest.raises(TaskAborted) as raised:
        await result.wait(BOUND)
    assert raised.value.args == ("enough", "ann", result.id)
    assert (await result.snapshot()).state == "REVOKED"
    request = await stage.settled(result)
    assert request.outcome == "aborted"
    assert request.seen_at is not None


async def test_body_that_never_looks(stage: Stage) -> None:
    """It is interrupted wherever it is, cleans up, and is not tried again."""
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
    """``except Exception`` catches it; the value is kept, and nothing else comes."""
    result = await stage.start(stage.tasks.in_interruptions.catching)
    await result.abort(reason="enough", requested_by="ann")

    assert await result.wait(BOUND) == "kept"
    assert (await result.snapshot()).state == "SUCCESS"
    assert (await stage.settled(result)).outcome == "returned"
    assert stage.place.lines("caught") == [
        f"Task '{result.id}' was aborted by ann: enough"
    ]


@pytest.mark.parametrize("worker", ["threads-notified"], indirect=True)
async def test_abort_in_a_shield(stage: Stage) -> None:
    """A critical section is not interrupted; what comes after it is."""
    result = await stage.start(stage.tasks.in_interruptions.shielding)
    await result.abort(reason="enough", requested_by="ann")
    # The process hears of both by one look, or of this one later.
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


async def test_aborts_round_the_end(stage: Stage) -> None:
    """Each of many short tasks ends in one way, and none by another one's abort.

    Closes: the exception arrives after the body, in Celery's code or in the next task.
    """
    log = stage.worker.log.stat().st_size
    slots = stage.worker.concurrency
    endings: set[str] = set()
    for first in range(0, BRIEF, slots):
        numbers = range(first, first + slots)
        endings.update(await asyncio.gather(*(ending(stage, n) for n in numbers)))

    # The moments were well chosen.
    assert "aborted" in endings
    assert len(endings) > 1
    after = stage.publish(stage.tasks.once)
    assert await after.wait(BOUND) == "done"
    assert b"Traceback" not in stage.worker.log.read_bytes()[log:]


async def ending(stage: Stage, number: int) -> str:
    """Abort a short task at a random moment, and return how it ended."""
    result = stage.publish(stage.tasks.in_interruptions.brief, number)
    await stage.place.reached(f"body-{number}")
    # Not to wait for anything: each task is hit at another moment.
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
