"""An abort is not lost, whatever else writes Celery's row."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from aioabort import TaskAborted
from tests.support.waiting import BOUND

from .conftest import over_both_backends
from .harness import Place, Stage

pytestmark = over_both_backends


async def test_abort_of_a_queued_task_survives_started(stage: Stage) -> None:
    """A queued task that was aborted never begins.

    Closes: abort() writes ABORTED, then the worker takes the message and writes
    STARTED over it (task_track_started), then the body looks and finds nothing.
    """
    async with stage.occupied():
        result = stage.publish(stage.tasks.once)
        receipt = await result.abort(reason="too late", requested_by="ann")

    with pytest.raises(TaskAborted):
        await result.wait(BOUND)

    assert receipt.answer == "requested"
    assert (await stage.settled(result)).outcome == "aborted"
    assert "body" not in stage.place


async def test_task_that_returns_keeps_its_value(stage: Stage) -> None:
    """A task that sees the abort and returns ends as SUCCESS, and it is known why.

    Closes: SUCCESS is written over ABORTED, and nothing says that the task stopped.
    """
    result = await stage.start(stage.tasks.returning)
    await result.abort(reason="enough", requested_by="ann")

    assert await result.wait(BOUND) == "stopped"
    assert (await result.snapshot()).state == "SUCCESS"
    request = await stage.settled(result)
    assert (request.outcome, request.reason, request.requested_by) == (
        "returned",
        "enough",
        "ann",
    )
    assert request.seen_at is not None
    assert request.outcome_at is not None
    assert request.requested_at <= request.seen_at <= request.outcome_at
    assert request.seen_by is not None
    assert " pid " in request.seen_by


async def test_task_that_fails_keeps_its_error(stage: Stage) -> None:
    """A task that sees the abort and raises ends as FAILURE, and it is known why.

    Closes: FAILURE is written over ABORTED.
    """
    result = await stage.start(stage.tasks.failing)
    await result.abort()

    with pytest.raises(ValueError, match="stopped in the middle"):
        await result.wait(BOUND)

    assert (await result.snapshot()).state == "FAILURE"
    request = await stage.settled(result)
    assert request.outcome == "failed"
    assert request.seen_at is not None


async def test_abort_among_progress_reports(stage: Stage) -> None:
    """A task that reports progress before every look stops all the same.

    Closes: abort() writes ABORTED between two reports, and the second one erases it
    before the task looks.
    """
    result = await stage.start(stage.tasks.progressing)
    await result.abort()

    assert await result.wait(BOUND) == "stopped"
    assert (await stage.settled(result)).outcome == "returned"


async def test_progress_does_not_hide_the_abort(stage: Stage) -> None:
    """An abort that was overwritten before the first look is still in force.

    Closes the same race with the order enforced: ABORTED is written, PROGRESS is
    written, the task looks, and the caller asks whether the task is being aborted.
    """
    result = await stage.start(stage.tasks.overwriting)
    await result.abort()
    stage.place.open("overwrite")
    await stage.place.reached("overwritten")

    assert (await result.snapshot()).state == stage.state_after_progress()
    assert await result.is_aborted()
    assert (await result.abort()).answer == "requested_before"

    stage.place.open("look")
    assert await result.wait(BOUND) == "stopped"


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "REVOKED"])
async def test_finished_task_is_left_alone(stage: Stage, state: str) -> None:
    """An abort after the end changes nothing, and says so.

    Closes: ABORTED is written over a result, and its value and traceback are gone.
    """
    # REVOKED by Celery itself, which finds the message expired.
    options = {"expires": -1} if state == "REVOKED" else {}
    result = stage.publish(stage.tasks.finishing, state, **options)
    assert (await stage.ended(result)).state == state
    before = stage.row(result)

    receipt = await result.abort(reason="too late")

    assert (receipt.answer, receipt.state) == ("finished", state)
    assert stage.row(result) == before
    assert (await result.snapshot()).request is None
    assert not await result.is_aborted()


async def test_aborted_task_is_left_alone(stage: Stage) -> None:
    """An abort of a task that an abort has ended changes nothing, and says so."""
    result = await stage.start(stage.tasks.raising)
    await result.abort(reason="first")
    await stage.settled(result)
    before = stage.row(result)

    receipt = await result.abort(reason="second")

    assert (receipt.answer, receipt.state) == ("finished", "REVOKED")
    assert receipt.request is not None
    assert receipt.request.reason == "first"
    assert stage.row(result) == before
    assert await result.is_aborted()


async def test_abort_that_nobody_looks_for(stage: Stage) -> None:
    """A task that never looks keeps its value, and the record says that it was late.

    Closes: a result that is stored after abort() would pass for an abort's.
    """
    result = await stage.start(stage.tasks.gated)
    await result.abort()
    stage.place.open("end")

    assert await result.wait(BOUND) == "done"
    request = await stage.settled(result)
    assert (request.outcome, request.seen_at) == ("too_late", None)
    assert not await result.is_aborted()


async def test_abort_at_the_moment_of_the_end(stage: Stage, tmp_path: Path) -> None:
    """A task that ends just then keeps its value, and it is known who came first.

    Closes: the task has returned and SUCCESS is not yet stored, or stored and not yet
    reported; abort() is answered "requested", and the request is never settled.
    """
    for delay in range(8):
        place = Place(tmp_path / str(delay))
        place.folder.mkdir()
        scene = replace(stage, place=place)
        result = await scene.start(stage.tasks.gated)
        place.open("end")
        # Not to wait for anything: each round hits another moment of the end.
        await asyncio.sleep(delay * 0.004)
        receipt = await result.abort()

        assert await result.wait(BOUND) == "done"
        if receipt.answer == "finished":
            assert (await result.snapshot()).request is None
        else:
            assert (await scene.settled(result)).outcome == "too_late"
        assert not await result.is_aborted()
