"""What becomes of a request, for those who hold its receipt.

There is no worker here: a test records what a worker would.
"""

import asyncio
import pickle
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from anyio import fail_after
from celery import Celery, states
from celery.exceptions import ChordError, TaskRevokedError

from aioabort import (
    AbortClient,
    AbortReceipt,
    AbortRequest,
    ClientClosed,
    TaskAborted,
    WaitTimeout,
)
from aioabort.exceptions import SeenTimeout
from aioabort.postgres.request_store import RequestStore
from aioabort.timing import Timing
from tests.integration.steps import are_awaited, end, listening
from tests.support.apps import MakeApp
from tests.support.waiting import NEVER_POLLED


@pytest.fixture
async def client(dsn: str, make_app: MakeApp) -> AsyncIterator[AbortClient]:
    """A client that is told of everything by notifications."""
    async with AbortClient(make_app(dsn, aioabort_poll_interval=NEVER_POLLED)) as it:
        await listening(it)
        yield it


@pytest.fixture
async def hasty_client(dsn: str, make_app: MakeApp) -> AsyncIterator[AbortClient]:
    """A client that waits 0.1 seconds for the outcome of a task that has ended."""
    app = make_app(dsn, aioabort_timing=Timing(settle_timeout=0.1))
    async with AbortClient(app) as it:
        yield it


@pytest.fixture
async def receipt(client: AbortClient) -> AbortReceipt:
    """The receipt of a request for a task that has not ended."""
    return await client.abort(str(uuid4()), reason="why")


def request_of(receipt: AbortReceipt) -> AbortRequest:
    assert receipt.request is not None
    return receipt.request


async def test_a_notice_ends_the_wait_for_it(
    client: AbortClient, receipt: AbortReceipt, store: RequestStore
) -> None:
    """The request says when and where the task noticed, without any poll."""
    waiting = asyncio.create_task(receipt.seen())
    await are_awaited(client)
    await store.record_seen([request_of(receipt)], [0.0], "node pid 1")
    await store.notify_clients([receipt.task_id])
    with fail_after(10):
        request = await waiting
    assert request is not None
    assert (request.seen_by, request.reason) == ("node pid 1", "why")
    assert request.seen_at is not None
    assert await receipt.seen(timeout=0) == request


@pytest.mark.parametrize(
    "outcome", ["aborted", "returned", "failed", "too_late", "killed"]
)
async def test_the_recorded_outcome_is_returned(
    client: AbortClient, receipt: AbortReceipt, store: RequestStore, outcome: Any
) -> None:
    """What the worker records is what who waits for the end gets."""
    waiting = asyncio.create_task(receipt.settled())
    await are_awaited(client)
    await store.record_outcomes([request_of(receipt)], [outcome], [0.0])
    await store.notify_clients([receipt.task_id])
    with fail_after(10):
        assert await waiting == outcome
        assert await receipt.settled(timeout=0) == outcome
    assert client.health().waiters == 0


async def test_a_task_that_ended_without_noticing_has_not_seen(
    client: AbortClient, receipt: AbortReceipt, store: RequestStore
) -> None:
    """None is returned, rather than waited on for ever."""
    waiting = asyncio.create_task(receipt.seen())
    await are_awaited(client)
    await store.record_outcomes([request_of(receipt)], ["too_late"], [0.0])
    await store.notify_clients([receipt.task_id])
    with fail_after(10):
        assert await waiting is None


@pytest.mark.parametrize("timeout", [0.1, 0, -1])
async def test_a_timeout_says_what_did_not_happen(
    client: AbortClient, receipt: AbortReceipt, timeout: float
) -> None:
    """A timeout of nothing is one look."""
    with fail_after(5), pytest.raises(SeenTimeout, match="did not notice its abort"):
        await receipt.seen(timeout=timeout)
    with fail_after(5), pytest.raises(WaitTimeout, match="did not end within"):
        await receipt.settled(timeout=timeout)
    assert client.health().waiters == 0


async def test_a_task_that_had_ended_is_settled(
    app: Celery, client: AbortClient
) -> None:
    """The task ended without seeing the abort, and the receipt says so at once."""
    task_id = str(uuid4())
    await end(app, task_id, 1, states.SUCCESS)
    receipt = await client.abort(task_id)
    with fail_after(5):
        assert await receipt.seen() is None
        assert await receipt.settled() == "too_late"


async def test_a_revoke_of_celerys_is_no_abort(
    app: Celery, client: AbortClient
) -> None:
    """An abort after Celery's own revoke is too late: the revoke ended the task."""
    revoked, aborted = str(uuid4()), str(uuid4())
    await end(app, revoked, TaskRevokedError("revoked"), states.REVOKED)
    await end(app, aborted, TaskAborted("why", None, aborted), states.REVOKED)
    receipts = await client.abort([revoked, aborted])
    with fail_after(5):
        outcomes = [await receipt.settled() for receipt in receipts]
    assert [receipt.answer for receipt in receipts] == ["finished", "finished"]
    assert outcomes == ["too_late", "aborted"]


async def test_the_receipt_of_an_earlier_request_follows_that(
    client: AbortClient, receipt: AbortReceipt, store: RequestStore
) -> None:
    """There is one request, whichever caller was first."""
    again = await client.abort(receipt.task_id)
    assert again.answer == "requested_before"
    await store.record_outcomes([request_of(receipt)], ["aborted"], [0.0])
    with fail_after(5):
        assert await again.settled() == "aborted"
        assert (await client.abort(receipt.task_id)).request is not None


CONCLUSIONS = [
    ("returned", 1, states.SUCCESS, True),
    ("too_late", 1, states.SUCCESS, False),
    ("failed", ValueError("x"), states.FAILURE, True),
    ("too_late", ValueError("x"), states.FAILURE, False),
    ("aborted", TaskRevokedError("revoked"), states.REVOKED, False),
    # Another task's abort, for which this one waited.
    ("failed", TaskAborted("why", None, "other"), states.FAILURE, True),
]


@pytest.mark.parametrize("conclusion", CONCLUSIONS)
async def test_an_end_that_nobody_records_is_concluded_from(
    app: Celery,
    receipt: AbortReceipt,
    store: RequestStore,
    hasty_client: AbortClient,
    conclusion: tuple[str, Any, str, bool],
) -> None:
    """A worker that died, or knows nothing of requests: some seconds after the end."""
    outcome, result, state, seen = conclusion
    if seen:
        await store.record_seen([request_of(receipt)], [0.0], "node pid 1")
    await end(app, receipt.task_id, result, state)
    with fail_after(5), pytest.raises(WaitTimeout):
        await receipt.settled(timeout=0.2)
    receipt = await hasty_client.abort(receipt.task_id)
    with fail_after(5):
        assert await receipt.settled() == outcome
        assert (await receipt.seen() is not None) == seen


@pytest.mark.parametrize(
    ("result", "state"),
    [
        (TaskAborted("why", None, "earlier"), states.REVOKED),
        (ChordError("Dependency x raised TaskAborted('why')"), states.FAILURE),
    ],
)
async def test_what_never_began_is_settled_at_once(
    app: Celery, client: AbortClient, receipt: AbortReceipt, result: Any, state: str
) -> None:
    """A later link, or a chord's body, ends by the abort of what came before it."""
    await end(app, receipt.task_id, result, state)
    with fail_after(Timing().settle_timeout / 2):
        assert await receipt.settled() == "aborted"
        assert await receipt.seen() is None
        with pytest.raises(TaskAborted, match="why"):
            await client.wait(receipt.task_id)


async def test_without_notifications_the_poll_tells(
    dsn: str, make_app: MakeApp, store: RequestStore
) -> None:
    """Lose every notification, and the only difference is time."""
    app = make_app(dsn, aioabort_poll_interval=0.1, aioabort_notify=False)
    async with AbortClient(app) as client:
        receipt = await client.abort(str(uuid4()))
        seen, settled = (
            asyncio.create_task(receipt.seen()),
            asyncio.create_task(receipt.settled()),
        )
        await are_awaited(client, 2)
        await store.record_seen([request_of(receipt)], [0.0], "node")
        with fail_after(10):
            assert await seen is not None
        assert not settled.done()
        await store.record_outcomes([request_of(receipt)], ["aborted"], [0.0])
        with fail_after(10):
            assert await settled == "aborted"


async def test_many_receipts_share_the_looks(
    client: AbortClient, store: RequestStore
) -> None:
    """A thousand wait, and all hear of a thousand outcomes."""
    many = await client.abort([str(uuid4()) for _ in range(1_000)])
    waiting = [asyncio.create_task(receipt.settled()) for receipt in many]
    await are_awaited(client, 1_000)
    requests = [request_of(receipt) for receipt in many]
    await store.record_outcomes(requests, ["aborted"] * 1_000, [0.0] * 1_000)
    await store.notify_clients([receipt.task_id for receipt in many])
    with fail_after(30):
        assert set(await asyncio.gather(*waiting)) == {"aborted"}


async def test_a_receipt_without_its_client_says_so(
    app: Celery, receipt: AbortReceipt
) -> None:
    """Pickled, it is a plain fact; closed, the client is of no use."""
    loaded = pickle.loads(pickle.dumps(receipt))
    for verb in (loaded.seen, loaded.settled):
        with pytest.raises(ClientClosed, match="has no client"):
            await verb()
    async with AbortClient(app) as other:
        late = await other.abort(receipt.task_id)
    with pytest.raises(ClientClosed):
        await late.settled()
