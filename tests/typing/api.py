"""How users' code is seen by type checkers; never run."""

from typing import Any, Literal, assert_type

import asyncpg
from celery import Celery, Signature, Task, group
from celery.result import AsyncResult, GroupResult

from aioabort import (
    AbortableAsyncResult,
    AbortableTask,
    AbortClient,
    AbortReceipt,
    AbortRequest,
    AbortToken,
    ClientHealth,
    TaskSnapshot,
    current_token,
    install,
    sync,
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
        async for snapshot in sent.watch():
            assert_type(snapshot, TaskSnapshot[bytes])
        async for any_snapshot in client.watch("id"):
            assert_type(any_snapshot, TaskSnapshot[Any])
        assert_type(client.health(), ClientHealth)
    with abortable_run(task) as run:
        run.abort_after(checks=3, reason="why")
        assert_type(run.token, AbortToken)
        ended = run("a", 1)
        assert_type(ended, Ended[bytes])
        assert_type(ended.value, bytes | None)
    assert_type(task.AsyncResult("id"), AbortableAsyncResult[bytes])
    assert_type(task.apply_async(("a", 1), countdown=5), AbortableAsyncResult[bytes])


async def publish(task: AbortableTask[[str, int], bytes], client: AbortClient) -> None:
    assert_type(await task.adelay("a", 1), AbortableAsyncResult[bytes])
    assert_type(await task.aapply_async(("a", 1)), AbortableAsyncResult[bytes])
    sent = await client.apply_async(task, ("a", 1), countdown=5)
    assert_type(sent, AbortableAsyncResult[bytes])
    signature: Signature[bytes] = task.s("a", 1)
    assert_type(await client.send(signature), AbortableAsyncResult[bytes])
    assert_type(
        await client.apply_async(signature, queue="q"), AbortableAsyncResult[bytes]
    )
    assert_type(await client.send(group([signature])), GroupResult)
    assert_type(await client.apply_async(group([signature])), GroupResult)


async def abort(
    client: AbortClient,
    result: AsyncResult[int],
    members: GroupResult,
    task: "Task[[], None]",
) -> None:
    assert_type(await client.abort("id", reason="why"), AbortReceipt)
    assert_type(await client.abort(result), AbortReceipt)
    assert_type(await client.abort(members), list[AbortReceipt])
    assert_type(await client.abort(["a", "b"]), list[AbortReceipt])
    assert_type(await client.abort(["a", result, members]), list[AbortReceipt])
    assert_type(await client.abort(each for each in "ab"), list[AbortReceipt])
    assert_type(await client.abort_where(task="index"), list[AbortReceipt])
    assert_type(await client.abort_where(task=task, queue="q"), list[AbortReceipt])
    receipt = await client.abort("id")
    assert_type(receipt.before, tuple[AbortReceipt, ...])
    assert_type(await receipt.seen(timeout=5), AbortRequest | None)
    assert_type(
        await receipt.settled(timeout=60),
        Literal["aborted", "returned", "failed", "too_late", "unkillable", "killed"],
    )


async def expose_to_threads(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    async with AbortClient(app, pool=pool) as client:
        assert_type(client.is_closed, bool)


async def await_many(
    client: AbortClient,
    results: list[AbortableAsyncResult[bytes]],
    members: GroupResult,
) -> None:
    assert_type(await client.wait(results[0], 5, abort_on_cancel=True), bytes)
    assert_type(await results[0].wait(abort_on_cancel=True, reason="gone"), bytes)
    assert_type(await client.wait("id"), Any)
    assert_type(await client.snapshot(results[0]), TaskSnapshot[bytes])
    assert_type(await client.gather(results), list[bytes])
    assert_type(await client.gather(results, return_exceptions=True), list[Any])
    assert_type(await client.gather(members), list[Any])
    assert_type(await client.gather(["a", results[0], members]), list[Any])
    async for result in client.as_completed(results, timeout=5):
        assert_type(result, AbortableAsyncResult[bytes])
        assert_type(await result, bytes)
    async for other in client.as_completed(["a", members]):
        assert_type(other, AbortableAsyncResult[Any])


def without_a_loop(result: AsyncResult[int], members: GroupResult) -> None:
    install(app)
    assert_type(sync.abort("id", app=app, reason="why"), AbortReceipt)
    assert_type(sync.abort(result), AbortReceipt)
    assert_type(sync.abort(members), list[AbortReceipt])
    assert_type(sync.abort(["a", result]), list[AbortReceipt])
    assert_type(sync.wait(result, timeout=5), int)
    assert_type(sync.wait("id"), Any)
    assert_type(sync.snapshot(result), TaskSnapshot[int])
