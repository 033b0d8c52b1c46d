"""The tasks of a batch are aborted one by one, although Celery sees one call of a body."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from anyio import to_thread
from celery import signals
from celery.app.task import Context

from aioabort import AbortableTask, AbortClient, ResultMissing, TaskAborted
from tests.support.apps import MakeApp
from tests.support.waiting import BOUND, until

#: What the body gets: a list of what celery-batches makes of messages.
Requests = list[SimpleNamespace]


def run_batch(task: Any, requests: Requests) -> None:
    """Call *task* with the signals and the context of celery-batches."""
    facts = {"task_id": str(uuid4()), "task": task, "args": (requests,), "kwargs": {}}
    task.request_stack.push(Context())
    state = "FAILURE"
    try:
        signals.task_prerun.send(sender=task, **facts)
        task(requests)
        state = "SUCCESS"
    except LookupError:
        pass
    finally:
        signals.task_postrun.send(sender=task, retval=None, state=state, **facts)
        task.request_stack.pop()


def new_request() -> SimpleNamespace:
    return SimpleNamespace(id=str(uuid4()), hostname="w@h")


@pytest.fixture
def make_task(dsn: str, make_app: MakeApp) -> Callable[..., Any]:
    """Makes a batch task of a body."""

    def make(body: Callable[..., None]) -> Any:
        app = make_app(dsn, aioabort_poll_interval=0.1)
        # Shared, it would be one of every app that a later test makes.
        options = {"name": "batch", "shared": False}
        return app.task(base=AbortableTask, bind=True, **options)(body)

    return make


async def test_one_task_of_a_batch(make_task: Callable[..., Any]) -> None:
    """The body sees which of its tasks is aborted, and all of them get an outcome."""
    begun, asked = [], []

    def body(self: Any, requests: Requests) -> None:
        first, second, _, done = [each.id for each in requests]
        begun.append(self.is_aborted(task_id=first))
        asked.append(self.is_aborted(task_id=second))
        self.backend.mark_as_revoked(first)
        self.backend.mark_as_done(done, "value")

    task = make_task(body)
    requests = [new_request() for _ in range(4)]
    first, second, third, done = [each.id for each in requests]
    async with AbortClient(task.app) as client:
        await client.abort([first, third, done], reason="enough")
        await to_thread.run_sync(run_batch, task, requests)

        assert (begun, asked) == ([True], [False])
        outcomes = {}
        for task_id in first, third, done:

            async def outcome(task_id: str = task_id) -> str | None:
                request = (await client.snapshot(task_id)).request
                return request and request.outcome

            outcomes[task_id] = await until(outcome)
        assert outcomes == {first: "aborted", third: "too_late", done: "too_late"}
        with pytest.raises(TaskAborted, match="enough"):
            await client.wait(first, BOUND)
        with pytest.raises(ResultMissing, match="too_late"):
            await client.wait(third, BOUND)
        assert await client.wait(done, BOUND) == "value"
        assert (await client.snapshot(second)).request is None


async def test_batch_that_fails(make_task: Callable[..., Any]) -> None:
    """Celery stores nothing for its tasks; their requests are settled all the same."""

    def body(self: Any, requests: Requests) -> None:
        assert self.is_aborted(task_id=requests[0].id)
        raise LookupError

    task = make_task(body)
    requests = [new_request()]
    async with AbortClient(task.app) as client:
        receipt = await client.abort(requests[0].id)
        await to_thread.run_sync(run_batch, task, requests)
        assert await receipt.settled(BOUND) == "failed"
