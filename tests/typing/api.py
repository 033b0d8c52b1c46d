"""How users' code is seen by type checkers; never run."""

from typing import assert_type

from celery import Celery

from aioabort import (
    AbortableAsyncResult,
    AbortableTask,
    AbortClient,
    AbortReceipt,
    AbortRequest,
    AbortToken,
    TaskSnapshot,
    current_token,
)
from aioabort.testing import Ended, abortable_run

app = Celery("proj")


@app.task(bind=True, base=AbortableTask)
def index(self: AbortableTask[..., int], root: str) -> int:
    assert_type(self.is_aborted(), bool)
    assert_type(self.is_aborted(task_id="id"), bool)
    assert_type(self.abort_token, AbortToken)
    assert_type(self.abort_token.aborted, bool)
    assert_type(current_token().request, AbortRequest | None)
    self.raise_if_aborted()
    return len(root)


class Resize(AbortableTask[[str, int], bytes]):
    def run(self, path: str, width: int) -> bytes:
        return path.encode() * width


async def use(task: AbortableTask[[str, int], bytes]) -> None:
    result = task.delay("a", 1)
    assert_type(result, AbortableAsyncResult[bytes])
    async with AbortClient(app) as client:
        sent = await client.send(task, "a", 1)
        assert_type(sent, AbortableAsyncResult[bytes])
        receipt = await sent.abort(reason="why", requested_by="alice")
        assert_type(receipt, AbortReceipt)
        assert_type(receipt.request, AbortRequest | None)
        assert_type(await sent.wait(timeout=30), bytes)
        assert_type(await sent, bytes)
        assert_type(await sent.is_aborted(), bool)
        assert_type(await sent.snapshot(), TaskSnapshot[bytes])
    with abortable_run(task) as run:
        run.abort_after(checks=3, reason="why")
        assert_type(run.token, AbortToken)
        ended = run("a", 1)
        assert_type(ended, Ended[bytes])
        assert_type(ended.value, bytes | None)
    assert_type(task.AsyncResult("id"), AbortableAsyncResult[bytes])
    assert_type(task.apply_async(("a", 1), countdown=5), AbortableAsyncResult[bytes])
