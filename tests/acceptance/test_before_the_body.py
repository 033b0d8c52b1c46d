"""An aborted task that is not running does not begin."""

import asyncio
from collections.abc import Callable
from uuid import uuid4

import pytest
from anyio import to_thread

from aioabort import TaskAborted, WaitTimeout
from tests.support.waiting import BOUND

from .conftest import WORKERS, follow_log
from .harness import Stage, Worker


@pytest.fixture(params=[*WORKERS, "prefork-notified-ours", "threads-polling-ours"])
def worker(request: pytest.FixtureRequest, workers: Callable[[str], Worker]) -> Worker:
    """Each worker in turn; those with our own backend ask when they store STARTED."""
    worker = workers(request.param)
    follow_log(request, worker)
    return worker


on_prefork = pytest.mark.parametrize(
    "worker", ["prefork-notified", "prefork-polling"], indirect=True
)


async def test_everybody_hears_of_the_abort(stage: Stage) -> None:
    """A wait, in asyncio or by Celery's own means, gets the reason.

    Closes: ABORTED as a final state, for which Celery's ``get()`` waits for ever.
    """
    async with stage.occupied():
        result = stage.publish(stage.tasks.once)
        await result.abort(reason="no longer needed", requested_by="ann")

    celerys = stage.worker.app.AsyncResult(result.id)
    with pytest.raises(TaskAborted) as asyncios:
        await result.wait(BOUND)
    with pytest.raises(TaskAborted) as threads:
        await to_thread.run_sync(lambda: celerys.get(BOUND, interval=0.05))

    for error in (asyncios.value, threads.value):
        assert error.reason == "no longer needed"
        assert error.requested_by == "ann"
        assert error.task_id == result.id
    assert celerys.state == "REVOKED"
    assert (await stage.settled(result)).outcome == "aborted"
    assert "body" not in stage.place


async def test_abort_before_the_task_is_sent(stage: Stage) -> None:
    """An abort may come before the task itself: the id is all that it needs.

    Closes: a web process learns the id, its message is still on the way to the
    broker, and the abort finds nothing to abort.
    """
    result = stage.client.result(str(uuid4()))
    receipt = await result.abort(reason="early")

    assert receipt.answer == "requested"
    assert await result.is_aborted()
    with pytest.raises(WaitTimeout):
        await result.wait(0.05)

    stage.publish(stage.tasks.once, task_id=result.id)
    with pytest.raises(TaskAborted, match="early"):
        await result.wait(BOUND)
    assert "body" not in stage.place


async def test_abort_of_a_task_with_a_countdown(stage: Stage) -> None:
    """A task that waits for its time in the worker does not begin when it comes.

    Closes: the message is taken from the queue long before the body begins, so that
    a query at the time of delivery finds nothing.
    """
    result = stage.publish(stage.tasks.once, countdown=1)
    await result.abort()

    with pytest.raises(TaskAborted):
        await result.wait(BOUND)
    assert "body" not in stage.place


async def test_abort_while_it_waits_for_a_retry(stage: Stage) -> None:
    """No further attempt is made after an abort between two attempts.

    Closes: RETRY is stored, abort() writes ABORTED over it, and the next attempt's
    STARTED erases that.
    """
    result = await stage.start(stage.tasks.retrying, 1)
    stage.place.open("retry")
    await stage.in_state(result, "RETRY")
    await result.abort()

    with pytest.raises(TaskAborted):
        await result.wait(BOUND)
    assert len(stage.place.lines("runs")) == 2
    assert len(stage.place.lines("body")) == 1


async def test_abort_before_the_retry(stage: Stage) -> None:
    """No further attempt is made after an abort that the first one did not look for.

    Closes: abort() writes ABORTED, the attempt ends and RETRY is stored over it.
    """
    result = await stage.start(stage.tasks.retrying, 0)
    await result.abort()
    stage.place.open("retry")

    with pytest.raises(TaskAborted):
        await result.wait(BOUND)
    assert (await stage.settled(result)).outcome == "aborted"
    assert len(stage.place.lines("body")) == 1


async def test_abort_is_no_error_to_retry(stage: Stage) -> None:
    """``autoretry_for=(Exception,)`` does not make another attempt of an aborted task.

    Closes: TaskAborted is an Exception, and Celery's wrapper would retry it.
    """
    result = await stage.start(stage.tasks.autoretrying)
    await result.abort(reason="enough")

    with pytest.raises(TaskAborted, match="enough"):
        await result.wait(BOUND)
    assert (await result.snapshot()).state == "REVOKED"
    assert (await stage.settled(result)).outcome == "aborted"
    assert len(stage.place.lines("runs")) == 1


@on_prefork
async def test_redelivery_of_an_aborted_task(stage: Stage) -> None:
    """A task that is delivered again after its process died does not run again.

    Closes: abort() writes ABORTED, the process is killed before the task looks, the
    broker delivers the message again, and STARTED erases the abort.
    """
    result = await stage.start(stage.tasks.dying)
    await result.abort(reason="it would die again")
    stage.place.open("die")

    with pytest.raises(TaskAborted, match="it would die again"):
        await result.wait(BOUND)
    assert (await stage.settled(result)).outcome == "aborted"
    assert len(stage.place.lines("runs")) == 2
    assert len(stage.place.lines("body")) == 1


@on_prefork
async def test_redelivery_of_a_task_that_an_abort_has_ended(stage: Stage) -> None:
    """A settled abort still stops the redelivery of the run that it ended.

    Closes: REVOKED is stored and the request settled, the process is killed before
    the message is acknowledged, and the broker delivers it again; the look at its
    start finds REVOKED, which Celery's STARTED erases at the same time.
    """
    result = await stage.start(stage.tasks.dying_after_the_end)
    await result.abort()
    await stage.settled(result)
    before = stage.row(result)
    stage.place.open("die")
    await stage.place.reached("ended", times=2)

    assert len(stage.place.lines("runs")) == 2
    assert len(stage.place.lines("body")) == 1
    after = stage.row(result)
    assert before is not None
    assert after is not None
    assert after["status"] == "REVOKED"
    assert after["result"] == before["result"]
    with pytest.raises(TaskAborted):
        await result.wait(BOUND)


async def test_settled_abort_does_not_stop_a_fresh_task(stage: Stage) -> None:
    """The same id, published anew after an abort has ended it, runs."""
    result = await stage.start(stage.tasks.raising)
    await result.abort()
    await stage.settled(result)

    stage.publish(stage.tasks.gated, task_id=result.id)
    await stage.place.reached("body", times=2)
    stage.place.open("end")

    assert await result.wait(BOUND) == "done"


async def test_second_abort_reports_the_first(stage: Stage) -> None:
    """Two people who abort one task: the first one's reason stands.

    Closes: the second request overwrites who asked for the abort, and why.
    """
    async with stage.occupied():
        result = stage.publish(stage.tasks.once)
        receipts = await asyncio.gather(
            result.abort(reason="tired", requested_by="ann"),
            result.abort(reason="bored", requested_by="bob"),
        )
    by_answer = {receipt.answer: receipt.request for receipt in receipts}

    assert set(by_answer) == {"requested", "requested_before"}
    assert by_answer["requested_before"] == by_answer["requested"]
    with pytest.raises(TaskAborted) as raised:
        await result.wait(BOUND)
    assert by_answer["requested"] is not None
    assert raised.value.reason == by_answer["requested"].reason
