"""The ways in which people write tasks: each can be aborted."""

from uuid import uuid4

import pytest

from aioabort import AbortableAsyncResult, TaskAborted
from tests.support.waiting import BOUND

from .harness import Stage

pytestmark = pytest.mark.parametrize(
    "worker", ["prefork-notified", "threads-polling", "solo-notified"], indirect=True
)

FORMS = [
    "library.shared",
    "proj.class_based",
    "proj.in_context",
    "proj.outer",
    "proj.prepared",
    "proj.raising",
    "proj.unbound",
]


@pytest.mark.parametrize("name", FORMS)
async def test_running_task_of_any_form(stage: Stage, name: str) -> None:
    """A running task sees the abort and ends as REVOKED."""
    result = await stage.start(stage.worker.app.tasks[name])
    await result.abort(reason="enough")

    await stage.aborted(result)


@pytest.mark.parametrize("name", [*FORMS, "proj.mixed_in", "proj.threaded"])
async def test_queued_task_of_any_form(stage: Stage, name: str) -> None:
    """A task that was aborted before does not begin, nor what is wrapped round it."""
    async with stage.occupied():
        result = stage.publish(stage.worker.app.tasks[name])
        await result.abort()

    with pytest.raises(TaskAborted):
        await result.wait(BOUND)
    assert "body" not in stage.place
    assert "context" not in stage.place


@pytest.mark.parametrize("name", ["proj.mixed_in", "proj.threaded"])
async def test_body_from_elsewhere(stage: Stage, name: str) -> None:
    """A body that a mixin defines, or a thread that holds the token, sees the abort."""
    result = await stage.start(stage.worker.app.tasks[name])
    await result.abort()

    assert await result.wait(BOUND) == "stopped"
    assert (await stage.settled(result)).outcome == "returned"


@pytest.mark.parametrize("ending", ["SUCCESS", "FAILURE"])
async def test_code_for_celerys_own_class(stage: Stage, ending: str) -> None:
    """Looks with an id, in handlers and in the body, find the abort."""
    result = await stage.start(stage.tasks.unchanged, ending)
    await result.abort()

    assert (await stage.ended(result)).state == ending
    await stage.place.reached("after_return")
    assert stage.place.lines("after_return") == ["True"]
    failures = ["True"] if ending == "FAILURE" else []
    assert stage.place.lines("on_failure") == failures


async def test_another_tasks_abort_is_a_failure(stage: Stage) -> None:
    """A task that waits for an aborted one fails by that; it was not aborted itself."""
    other = stage.client.result(str(uuid4()))
    await other.abort()
    stage.publish(stage.tasks.once, task_id=other.id)
    await stage.ended(other)

    result = stage.publish(stage.tasks.relaying, other.id)
    with pytest.raises(TaskAborted) as raised:
        await result.wait(BOUND)

    assert raised.value.task_id == other.id
    snapshot = await result.snapshot()
    assert (snapshot.state, snapshot.request) == ("FAILURE", None)
    assert not snapshot.is_aborted


async def test_result_of_delay_can_be_aborted(stage: Stage) -> None:
    """What ``delay()`` returns needs no client: one is opened for the running loop."""
    result = stage.tasks.raising.delay(str(stage.place.folder))
    assert isinstance(result, AbortableAsyncResult)
    await result.abort(reason="enough")

    with pytest.raises(TaskAborted, match="enough"):
        await result.wait(BOUND)
    assert await result.is_aborted()


async def test_client_sends_a_task(stage: Stage) -> None:
    """``client.send()`` publishes like ``delay()``; its result is bound to the client."""
    result = await stage.client.send(stage.tasks.once, str(stage.place.folder))

    assert await result.wait(BOUND) == "done"
