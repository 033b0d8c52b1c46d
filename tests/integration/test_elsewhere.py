"""Results that are not in PostgreSQL, which carries the aborts: Redis, SQLite, none.

There is no worker here: a test stores results as a worker would.
"""

import asyncio
import os
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis
from anyio import fail_after, sleep, to_thread
from celery import Celery, states
from celery.backends.database import DatabaseBackend
from celery.backends.redis import RedisBackend
from kombu.exceptions import DecodeError

from aioabort import (
    AbortClient,
    ResultsElsewhere,
    TaskAborted,
    WaitTimeout,
)
from aioabort.postgres.pool import open_pool
from aioabort.postgres.store import Store, open_store
from aioabort.producer import elsewhere
from aioabort.settings import read_settings
from tests.integration.conftest import Network
from tests.integration.steps import are_awaited

REDIS = os.environ.get("AIOABORT_TEST_REDIS", "redis://127.0.0.1:6379/7")

# Celery's own backend, with a redis-py that is newer.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex")

#: So long that a test which depends on the poll would time out.
NEVER_POLLED = 3_600.0

MakeApp = Callable[..., Celery]


@pytest.fixture(scope="session")
def redis_url() -> str:
    """The address of a Redis that answers."""
    with redis.Redis.from_url(REDIS) as server:
        try:
            server.ping()
        except redis.ConnectionError as error:
            pytest.skip(f"no Redis: {error}")
    return REDIS


@pytest.fixture(params=["redis", "sqlite"])
def backend_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a result backend that is not PostgreSQL."""
    if request.param == "sqlite":
        return f"db+sqlite:///{tmp_path / 'results'}"
    url: str = request.getfixturevalue("redis_url")
    return url


def make(dsn: str, backend: str | None, **settings: Any) -> Celery:
    app = Celery("tests", broker="memory://", backend=backend, set_as_current=False)
    app.conf.update(aioabort_dsn=dsn, aioabort_poll_interval=0.1, result_expires=60)
    app.conf.update(settings)
    return app


async def put(app: Celery, task_id: str, result: Any, state: str) -> None:
    """Store a state as a worker does."""
    await to_thread.run_sync(app.backend.store_result, task_id, result, state)


@pytest.fixture
async def client(empty_dsn: str, backend_url: str) -> AsyncIterator[AbortClient]:
    """A client whose results are elsewhere, and which polls many times a second."""
    async with AbortClient(make(empty_dsn, backend_url)) as client:
        yield client


@pytest.fixture
async def requests(client: AbortClient) -> AsyncIterator[Store]:
    """The store of the client's requests."""
    settings = read_settings(client.app)
    async with open_pool(settings.dsn, max_size=2) as pool:
        yield await open_store(pool, settings)


async def test_a_value_is_awaited(client: AbortClient, task_id: str) -> None:
    """The end of a task is found by the poll, and its value decoded."""
    waiting = asyncio.create_task(client.wait(task_id))
    await sleep(0.1)
    assert not waiting.done()
    await put(client.app, task_id, {"n": [1, None]}, states.SUCCESS)
    with fail_after(10):
        assert await waiting == {"n": [1, None]}
        assert await client.wait(task_id, timeout=0) == {"n": [1, None]}


async def test_errors_are_raised(client: AbortClient) -> None:
    """A failure and an abort raise what they raise with results in PostgreSQL."""
    failed, aborted = str(uuid4()), str(uuid4())
    await put(client.app, failed, KeyError("k"), states.FAILURE)
    error = TaskAborted("why", "alice", aborted)
    await put(client.app, aborted, error, states.REVOKED)
    with fail_after(10), pytest.raises(KeyError, match="k"):
        await client.wait(failed)
    with fail_after(10), pytest.raises(TaskAborted, match="by alice: why"):
        await client.wait(aborted)


async def test_an_error_is_raised_for_each(client: AbortClient, task_id: str) -> None:
    """Who is told first adds nothing to the traceback of the last one."""

    async def frames() -> int:
        with pytest.raises(KeyError) as caught:
            await client.wait(task_id)
        return len(caught.traceback)

    waiting = [asyncio.create_task(frames()) for _ in range(50)]
    await are_awaited(client, 50)
    await put(client.app, task_id, KeyError("k"), states.FAILURE)
    with fail_after(10):
        assert len(set(await asyncio.gather(*waiting))) == 1


async def test_a_notification_ends_the_wait(
    empty_dsn: str, backend_url: str, task_id: str
) -> None:
    """The notifications are the same: the end is noticed without any poll."""
    app = make(empty_dsn, backend_url, aioabort_poll_interval=NEVER_POLLED)
    settings = read_settings(app)
    async with AbortClient(app) as client, open_pool(settings.dsn, 1) as pool:
        store = await open_store(pool, settings)
        with fail_after(10):
            while client.health().mode != "notify":
                await sleep(0.01)
        waiting = asyncio.create_task(client.wait(task_id))
        await sleep(0.2)
        await put(app, task_id, "value", states.SUCCESS)
        await store.hint_clients([task_id])
        with fail_after(10):
            assert await waiting == "value"


async def test_every_state_is_watched(client: AbortClient, task_id: str) -> None:
    """Progress from the backend and requests from PostgreSQL, each change once."""
    async with aclosing(client.watch(task_id)) as snapshots:
        with fail_after(20):
            assert (await anext(snapshots)).state == "PENDING"
            await put(client.app, task_id, {"files": 1}, "PROGRESS")
            progress = await anext(snapshots)
            assert (progress.state, progress.result) == ("PROGRESS", {"files": 1})
            await client.abort(task_id, reason="why")
            asked = await anext(snapshots)
            assert asked.is_aborted
            assert asked.state == "PROGRESS"
            await put(client.app, task_id, ValueError("x"), states.RETRY)
            assert (await anext(snapshots)).state == "RETRY"
            following = asyncio.ensure_future(anext(snapshots))
            # Each look finds an exception that is another object.
            await sleep(0.3)
            assert not following.done()
            await put(client.app, task_id, "value", states.SUCCESS)
            last = await following
            assert (last.state, last.result, last.is_finished) == (
                "SUCCESS",
                "value",
                True,
            )


async def test_a_snapshot_joins_both(client: AbortClient, task_id: str) -> None:
    """State and result are the backend's, the request is PostgreSQL's."""
    assert (await client.snapshot(task_id)).state == "PENDING"
    receipt = await client.abort(task_id, reason="why", requested_by="alice")
    assert receipt.answer == "requested"
    assert (await client.abort(task_id)).answer == "requested_before"
    await put(client.app, task_id, 1, states.SUCCESS)
    snapshot = await client.snapshot(task_id)
    assert (snapshot.state, snapshot.result) == ("SUCCESS", 1)
    assert snapshot.request is not None
    assert snapshot.request.reason == "why"
    assert not snapshot.is_aborted


async def test_what_has_finished_elsewhere_is_not_aborted(
    client: AbortClient, task_id: str
) -> None:
    """The receipt says so, and nothing is written."""
    await put(client.app, task_id, 1, states.SUCCESS)
    receipt = await client.abort(task_id)
    assert (receipt.answer, receipt.state) == ("finished", "SUCCESS")
    assert (await client.snapshot(task_id)).request is None


async def test_a_task_that_stores_nothing_ends_with_its_request(
    client: AbortClient, requests: Store, task_id: str
) -> None:
    """Where no result is stored, the outcome of the request ends the wait."""
    waiting = asyncio.create_task(client.wait(task_id))
    request = (await requests.request([task_id], "why"))[task_id]
    await requests.record_outcomes([request], ["aborted"], [0.0])
    with fail_after(10), pytest.raises(TaskAborted, match="why"):
        await waiting


async def test_an_end_between_two_reads_is_not_half_seen(
    client: AbortClient,
    requests: Store,
    empty_dsn: str,
    task_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task that saw the abort and returned a value all the same: the value is seen.

    look: result is not there | stored, request settled | look: both are there

    Were the result read before the request, the look would end with a settled request
    and no result, which is how a task looks that stores none.
    """
    await requests.request([task_id])
    ends = [task_id]

    def read_and_end(backend: Any, task_ids: list[str]) -> Any:
        metas = read(backend, task_ids)
        if ends:
            backend.store_result(ends.pop(), "value", states.SUCCESS)
            with psycopg.connect(empty_dsn) as connection:
                connection.execute("UPDATE aioabort_request SET outcome = 'returned'")
        return metas

    read = elsewhere._read
    monkeypatch.setattr(elsewhere, "_read", read_and_end)
    with fail_after(10):
        assert await client.wait(task_id) == "value"


async def test_many_are_read_at_once_and_in_one_thread(
    empty_dsn: str, backend_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look asks Redis once for all that are awaited; SQLite, one after the other."""
    threads: list[int] = []

    def count(cls: type, name: str) -> None:
        original = getattr(cls, name)

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            threads.append(threading.get_ident())
            return original(self, *args, **kwargs)

        monkeypatch.setattr(cls, name, counted)

    count(RedisBackend, "mget")
    count(RedisBackend, "get")
    count(DatabaseBackend, "_get_task_meta_for")
    app = make(empty_dsn, backend_url, aioabort_poll_interval=NEVER_POLLED)
    task_ids = [str(uuid4()) for _ in range(50)]
    for task_id in task_ids:
        await put(app, task_id, task_id, states.SUCCESS)
    threads.clear()
    async with AbortClient(app) as client:
        with fail_after(20):
            assert await asyncio.gather(*map(client.wait, task_ids)) == task_ids
        await client.snapshot(task_ids[0])
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads
    if backend_url == REDIS:
        # One for all who wait, one for those who came while it was made, one snapshot.
        assert len(threads) <= 3


async def test_what_cannot_be_decoded_is_an_error_of_that_task_alone(
    empty_dsn: str, redis_url: str
) -> None:
    """A payload that Celery would refuse is refused; other waiters are not harmed."""
    bad, good = str(uuid4()), str(uuid4())
    app = make(empty_dsn, redis_url)
    with redis.Redis.from_url(redis_url) as server:
        server.set(f"celery-task-meta-{bad}", "no json", ex=60)
    await put(app, good, 1, states.SUCCESS)
    async with AbortClient(app) as client:
        calls = client.wait(bad), client.wait(good), client.snapshot(bad)
        with fail_after(10):
            answers = await asyncio.gather(*calls, return_exceptions=True)
        with fail_after(10):
            errors = await asyncio.gather(
                *(client.wait(bad) for _ in range(50)), return_exceptions=True
            )
    assert isinstance(answers[0], DecodeError)
    assert answers[1] == 1
    assert isinstance(answers[2], DecodeError)
    # Who is told first adds nothing to the traceback of the last one.
    assert all(len(traceback.extract_tb(error.__traceback__)) < 50 for error in errors)


async def test_results_flow_while_postgresql_is_away(
    network: Network, backend_url: str, task_id: str
) -> None:
    """An outage of PostgreSQL delays aborts, and no result that is kept elsewhere.

    wait() | PostgreSQL away | task ends in the backend | value
    """
    app = make(network.dsn, backend_url)
    async with AbortClient(app) as client:
        waiting = asyncio.create_task(client.wait(task_id))
        await network.cut()
        await put(app, task_id, "value", states.SUCCESS)
        with fail_after(15):
            assert await waiting == "value"


async def test_a_backend_that_is_away_is_named(empty_dsn: str, task_id: str) -> None:
    """While the backend cannot be read, wait() goes on, and the time-out says why."""
    app = make(empty_dsn, "redis://:s3cretWord@127.0.0.1:1/0")
    async with AbortClient(app) as client:
        with (
            fail_after(30),
            pytest.raises(WaitTimeout, match="result backend cannot be read") as caught,
        ):
            await client.wait(task_id, timeout=5.0)
        assert "s3cretWord" not in str(caught.value)
        health = client.health()
        assert not health.is_connected
        assert "result backend cannot be read" in (health.last_error or "")


@pytest.mark.parametrize(
    ("backend", "message"), [("rpc://", "rpc://"), ("disabled://", "no result backend")]
)
async def test_results_that_nobody_can_read_are_refused(
    empty_dsn: str, task_id: str, backend: str, message: str
) -> None:
    """Aborts work; to await is a clear error instead of a wait for ever."""
    async with AbortClient(make(empty_dsn, backend)) as client:
        assert (await client.abort(task_id)).answer == "requested"
        assert (await client.abort(task_id)).answer == "requested_before"
        assert await client.is_aborted(task_id)
        assert (await client.snapshot(task_id)).state == "PENDING"
        with pytest.raises(ResultsElsewhere, match=message):
            await client.wait(task_id)
        with pytest.raises(ResultsElsewhere, match=message):
            await anext(client.watch(task_id))
