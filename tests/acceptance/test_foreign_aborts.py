"""ABORTED as others write it: celery.contrib.abortable, and so Flower."""

import celery.contrib.abortable
import pytest
from anyio import to_thread

from aioabort import AbortableAsyncResult, AbortRequest, TaskAborted
from tests.support.waiting import BOUND, until

from .conftest import over_both_backends
from .harness import Stage

pytestmark = over_both_backends


async def abort_as_flower(stage: Stage, result: AbortableAsyncResult[object]) -> None:
    """Write ABORTED with Celery's own class, which knows nothing of aioabort."""
    celerys = celery.contrib.abortable.AbortableAsyncResult(
        result.id, app=stage.worker.app
    )
    await to_thread.run_sync(celerys.abort)


async def test_abort_by_celerys_own_class(stage: Stage) -> None:
    """A running task sees it, and it becomes a request like any other."""
    result = await stage.start(stage.tasks.raising)
    await abort_as_flower(stage, result)

    with pytest.raises(TaskAborted):
        await result.wait(BOUND)
    request = await stage.settled(result)
    assert request.outcome == "aborted"
    assert request.seen_at is not None


async def test_foreign_abort_survives_progress(stage: Stage) -> None:
    """Once the worker has seen it, it may be overwritten without being lost.

    Closes: ABORTED is written, the worker looks, PROGRESS is written, the task looks.
    """
    result = await stage.start(stage.tasks.overwriting)
    await abort_as_flower(stage, result)

    async def request() -> AbortRequest | None:
        return (await result.snapshot()).request

    await until(request)
    stage.place.open("overwrite")
    await stage.place.reached("overwritten")
    assert (await result.snapshot()).state == stage.state_after_progress()
    stage.place.open("look")

    assert await result.wait(BOUND) == "stopped"
    assert (await stage.settled(result)).outcome == "returned"


async def test_foreign_abort_of_a_queued_task(stage: Stage) -> None:
    """A queued task that Flower aborted does not begin.

    With task_track_started Celery erases this abort itself, so it is switched off.
    """
    async with stage.occupied():
        result = stage.publish(stage.tasks.untracked)
        await abort_as_flower(stage, result)

    with pytest.raises(TaskAborted):
        await result.wait(BOUND)
    assert "body" not in stage.place
