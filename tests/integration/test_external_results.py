"""Results that are not in PostgreSQL, which carries the aborts: Redis, SQLite, none.

There is no worker here: a test stores results as a worker would.
"""

import asyncio
import json
import threading
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis
from anyio import fail_after, sleep
from celery import Celery, states
from celery.backends.database import DatabaseBackend
from kombu.exceptions import DecodeError

from aioabort import (
    AbortClient,
    ClientClosed,
    ResultsElsewhere,
    StoreUnavailable,
    TaskAborted,
    WaitTimeout,
)
from aioabort.external import blocking_reader
from aioabort.postgres.pool import open_pool
from aioabort.postgres.request_store import RequestStore, open_request_store
from aioabort.settings import read_settings
from aioabort.timing import Timing
from tests.integration.steps import are_awaited, end, listening
from tests.support.network import Network
from tests.support.waiting import BOUND, NEVER_POLLED

# Celery's own backend, with a redis-py that is newer.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex")


def make(dsn: str, backend: str | None, **settings: Any) -> Celery:
    app = Celery("tests", broker="memory://", backend=backend, set_as_current=False)
    app.conf.update(aioabort_dsn=dsn, aioabort_poll_interval=0.1, result_expires=60)
    app.conf.update(settings)
    return app


@pytest.fixture
async def client(empty_dsn: str, external_url: str) -> AsyncIterator[AbortClient]:
    """A client whose results are elsewhere, and which polls many times a second."""
    async with AbortClient(make(empty_dsn, external_url)) as client:
        yield client


@pytest.fixture
async def requests(client: AbortClient) -> AsyncIterator[RequestStore]:
    """The store of the client's requests."""
    settings = read_settings(client.app)
    async with open_pool(settings.dsn, 2, settings.timing) as pool:
        yield await open_request_store(pool, settings)


async def test_a_value_is_awaited(client: AbortClient, task_id: str) -> None:
    """The end of a task is found by the poll, and its value decoded."""
    waiting = asyncio.create_task(client.wait(task_id))
    await sleep(0.1)
    assert not waiting.done()
    await end(client.app, task_id, {"n": [1, None]}, states.SUCCESS)
    with fail_after(10):
        assert await waiting == {"n": [1, None]}
        assert await client.wait(task_id, timeout=0) == {"n": [1, None]}


async def test_errors_are_raised(client: AbortClient) -> None:
    """A failure and an abort raise what they raise with results in PostgreSQL."""
    failed, aborted = str(uuid4()), str(uuid4())
    await end(client.app, failed, KeyError("k"), states.FAILURE)
    error = TaskAborted("why", "alice", aborted)
    await end(client.app, aborted, error, states.REVOKED)
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
    await end(client.app, task_id, KeyError("k"), states.FAILURE)
    with fail_after(10):
        assert len(set(await asyncio.gather(*waiting))) == 1


async def test_a_notification_ends_the_wait(
    empty_dsn: str, external_url: str, task_id: str
) -> None:
    """The notifications are the same: the end is noticed without any poll."""
    app = make(empty_dsn, external_url, aioabort_poll_interval=NEVER_POLLED)
    settings = read_settings(app)
    async with (
        AbortClient(app) as client,
        open_pool(settings.dsn, 1, settings.timing) as pool,
    ):
        store = await open_request_store(pool, settings)
        await listening(client)
        waiting = asyncio.create_task(client.wait(task_id))
        await sleep(0.2)
        await end(app, task_id, "value", states.SUCCESS)
        await store.notify_clients([task_id])
        with fail_after(10):
            assert await waiting == "value"


async def test_every_state_is_watched(client: AbortClient, task_id: str) -> None:
    """Progress from the backend and requests from PostgreSQL, each change once.

    Between the abort and the end, the state is ABORTED whatever the task stores.
    """
    async with aclosing(client.watch(task_id)) as snapshots:
        with fail_after(20):
            assert (await anext(snapshots)).state == "PENDING"
            await end(client.app, task_id, {"files": 1}, "PROGRESS")
            progress = await anext(snapshots)
            assert (progress.state, progress.result) == ("PROGRESS", {"files": 1})
            await client.abort(task_id, reason="why")
            asked = await anext(snapshots)
            assert asked.is_aborted
            assert asked.state == "ABORTED"
            await end(client.app, task_id, ValueError("x"), states.RETRY)
            retry = await anext(snapshots)
            assert retry.state == "ABORTED"
            assert isinstance(retry.result, ValueError)
            following = asyncio.ensure_future(anext(snapshots))
            # Each look finds an exception that is another object.
            await sleep(0.3)
            assert not following.done()
            await end(client.app, task_id, "value", states.SUCCESS)
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
    await end(client.app, task_id, 1, states.SUCCESS)
    snapshot = await client.snapshot(task_id)
    assert (snapshot.state, snapshot.result) == ("SUCCESS", 1)
    assert snapshot.request is not None
    assert snapshot.request.reason == "why"
    assert not snapshot.is_aborted


async def test_what_settled_says_is_shown_from_then_on(
    empty_dsn: str, external_url: str, task_id: str
) -> None:
    """The outcome of a task whose worker records none is derived, and recorded."""
    timing = Timing(settle_timeout=0.2)
    async with AbortClient(make(empty_dsn, external_url, aioabort_timing=timing)) as it:
        receipt = await it.abort(task_id)
        await end(it.app, task_id, 1, states.SUCCESS)
        assert await receipt.settled(BOUND) == "too_late"
        request = (await it.snapshot(task_id)).request
        assert request is not None
        assert request.outcome == "too_late"
        assert request.outcome_at is not None


@pytest.mark.parametrize("timezone", ["UTC", "Asia/Kolkata"])
async def test_the_end_has_a_time_zone(
    empty_dsn: str, external_url: str, task_id: str, timezone: str
) -> None:
    """Redis stores text, and SQLite drops the time zone, which is the app's."""
    async with AbortClient(make(empty_dsn, external_url, timezone=timezone)) as client:
        await end(client.app, task_id, 1, states.SUCCESS)
        ended_at = (await client.snapshot(task_id)).date_done
    assert ended_at is not None
    assert abs(datetime.now(UTC) - ended_at) < timedelta(minutes=1)


async def test_what_has_finished_elsewhere_is_not_aborted(
    client: AbortClient, task_id: str
) -> None:
    """The receipt says so, and nothing is written."""
    await end(client.app, task_id, 1, states.SUCCESS)
    receipt = await client.abort(task_id)
    assert (receipt.answer, receipt.state) == ("finished", "SUCCESS")
    assert (await client.snapshot(task_id)).request is None


async def test_a_task_that_stores_nothing_ends_with_its_request(
    client: AbortClient, requests: RequestStore, task_id: str
) -> None:
    """Where no result is stored, the outcome of the request ends the wait."""
    waiting = asyncio.create_task(client.wait(task_id))
    request = (await requests.request_aborts([task_id], "why"))[task_id]
    await requests.record_outcomes([request], ["aborted"], [0.0])
    with fail_after(10), pytest.raises(TaskAborted, match="why"):
        await waiting


async def test_an_end_between_two_reads_is_not_half_seen(
    client: AbortClient,
    requests: RequestStore,
    empty_dsn: str,
    task_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task that saw the abort and returned a value all the same: the value is seen.

    look: result is not there | stored, request settled | look: both are there

    Were the result read before the request, the look would end with a settled request
    and no result, which is how a task looks that stores none.
    """
    await requests.request_aborts([task_id])
    ends = [task_id]

    reader: Any = client._connections.results
    read = reader._reader.read

    async def read_and_end(
        task_ids: Sequence[str], timeout: float | None = None
    ) -> Any:
        readings = await read(task_ids, timeout)
        if ends:
            await end(client.app, ends.pop(), "value", states.SUCCESS)
            with psycopg.connect(empty_dsn) as connection:
                connection.execute("UPDATE aioabort_request SET outcome = 'returned'")
        return readings

    monkeypatch.setattr(reader._reader, "read", read_and_end)
    with fail_after(10):
        assert await client.wait(task_id) == "value"


async def test_many_are_read_at_once_and_in_one_thread(
    empty_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite is read for one task after the other, and not on the event loop."""
    threads: list[int] = []
    read = DatabaseBackend._get_task_meta_for

    def counted(self: Any, task_id: str) -> Any:
        threads.append(threading.get_ident())
        return read(self, task_id)

    monkeypatch.setattr(DatabaseBackend, "_get_task_meta_for", counted)
    app = make(
        empty_dsn,
        f"db+sqlite:///{tmp_path / 'results'}",
        aioabort_poll_interval=NEVER_POLLED,
    )
    task_ids = [str(uuid4()) for _ in range(50)]
    for task_id in task_ids:
        await end(app, task_id, task_id, states.SUCCESS)
    threads.clear()
    async with AbortClient(app) as client:
        with fail_after(20):
            assert await asyncio.gather(*map(client.wait, task_ids)) == task_ids
        await client.snapshot(task_ids[0])
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads


async def test_what_cannot_be_decoded_is_an_error_of_that_task_alone(
    empty_dsn: str, redis_url: str
) -> None:
    """A payload that Celery would refuse is refused; other waiters are not harmed."""
    bad, good = str(uuid4()), str(uuid4())
    app = make(empty_dsn, redis_url)
    with redis.Redis.from_url(redis_url) as server:
        server.set(f"celery-task-meta-{bad}", "no json", ex=60)
    await end(app, good, 1, states.SUCCESS)
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


#: Payloads that a program with access to one result can write.
HOSTILE = {
    "a class that Celery refuses": {
        "status": states.FAILURE,
        "result": {
            "exc_type": "system",
            "exc_module": "os",
            "exc_message": ["true"],
        },
    },
    "no dict": [],
    "nested too deeply": "[" * 100_000,
}


@pytest.mark.parametrize("result", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_result_ends_its_own_wait_only(
    empty_dsn: str, redis_url: str, result: object
) -> None:
    """Whatever the decoder raises, the backend is there, and other waits go on.

    two wait | the odd result is stored | its wait ends | the other result is stored
    """
    bad, good = str(uuid4()), str(uuid4())
    app = make(empty_dsn, redis_url)
    payload = result if isinstance(result, str) else json.dumps(result)
    async with AbortClient(app) as client:
        waiting = asyncio.create_task(client.wait(good))
        with redis.Redis.from_url(redis_url) as server:
            server.set(f"celery-task-meta-{bad}", payload, ex=60)
        with fail_after(10):
            [error] = await asyncio.gather(client.wait(bad), return_exceptions=True)
        assert isinstance(error, Exception)
        assert client.health().last_error is None
        await end(app, good, 1, states.SUCCESS)
        with fail_after(10):
            assert await waiting == 1


async def test_results_flow_while_postgresql_is_away(
    network: Network, external_url: str, task_id: str
) -> None:
    """An outage of PostgreSQL delays aborts, and no result that is kept external_results.

    wait() | PostgreSQL away | task ends in the backend | value
    """
    app = make(network.dsn, external_url)
    async with AbortClient(app) as client:
        waiting = asyncio.create_task(client.wait(task_id))
        await network.cut()
        await end(app, task_id, "value", states.SUCCESS)
        with fail_after(15):
            assert await waiting == "value"


async def test_a_frozen_backend_holds_no_abort(
    empty_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is committed although the backend never says whether the task runs.

    the backend's read does not return | abort(): the read is given up | committed

    Later reads are given up sooner, and the end of the client waits for none of them.
    """
    thaw = threading.Event()
    frozen = {"status": states.PENDING, "result": None}
    monkeypatch.setattr(
        DatabaseBackend,
        "_get_task_meta_for",
        lambda *_: thaw.wait(BOUND) and frozen,
    )
    timing = Timing(statement_timeout=0.5)
    url = f"db+sqlite:///{tmp_path / 'results'}"
    async with AbortClient(make(empty_dsn, url, aioabort_timing=timing)) as it:
        with fail_after(BOUND / 2):
            assert (await it.abort("a")).answer == "requested"
            assert (await it.abort("a")).answer == "requested_before"
            with pytest.raises(StoreUnavailable, match=r"not answer within 0\.05 s"):
                await it.snapshot("a")
            waiting = asyncio.create_task(it.wait("a"))
            await are_awaited(it)
            await it.aclose()
            with pytest.raises(ClientClosed):
                await waiting
    thaw.set()


async def test_an_abort_outlasts_the_backend(empty_dsn: str, task_id: str) -> None:
    """A backend that refuses connections does not refuse aborts either."""
    async with AbortClient(make(empty_dsn, "redis://127.0.0.1:1/0")) as client:
        assert (await client.abort(task_id)).answer == "requested"


async def test_an_abort_fails_without_postgresql(
    network: Network, external_url: str, task_id: str
) -> None:
    """The requests are there: without it, nothing is asked to stop."""
    async with AbortClient(make(network.dsn, external_url)) as client:
        await network.cut()
        with pytest.raises(StoreUnavailable):
            await client.abort(task_id)


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
    ("backend", "message"),
    [("rpc://", "another result_backend"), ("disabled://", "set result_backend")],
)
async def test_results_that_nobody_can_read_are_refused(
    empty_dsn: str, task_id: str, backend: str, message: str
) -> None:
    """Aborts work; to await is a clear error instead of a wait for ever."""
    async with AbortClient(make(empty_dsn, backend)) as client:
        assert (await client.abort(task_id)).answer == "requested"
        assert (await client.abort(task_id)).answer == "requested_before"
        assert await client.is_aborted(task_id)
        assert (await client.snapshot(task_id)).state == "ABORTED"
        with pytest.raises(ResultsElsewhere, match=message):
            await client.wait(task_id)
        with pytest.raises(ResultsElsewhere, match=message):
            await anext(client.watch(task_id))


@pytest.mark.parametrize("is_completed", [True, False])
async def test_a_file_that_is_half_written(
    empty_dsn: str,
    tmp_path: Path,
    task_id: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_completed: bool,
) -> None:
    """It is read again, and is an error only if it has stayed the same.

    worker: writes a half | client: reads | worker: writes the rest | client: reads again
    """
    app = make(empty_dsn, f"file://{tmp_path}")
    await end(app, task_id, "value", states.SUCCESS)
    file = tmp_path / app.backend.get_key_for_task(task_id).decode()
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])

    def write_the_rest(_: float) -> None:
        if is_completed:
            file.write_text(whole)

    monkeypatch.setattr(blocking_reader, "sleep", write_the_rest)
    async with AbortClient(app) as client:
        with fail_after(BOUND):
            if is_completed:
                assert await client.wait(task_id) == "value"
            else:
                with pytest.raises(DecodeError):
                    await client.wait(task_id)
