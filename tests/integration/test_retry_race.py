"""A retry is aborted while the run that has published it is about to store RETRY."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from anyio import to_thread
from celery import Celery, signals, states
from celery.app.trace import trace_task

from aioabort import AbortableTask, AbortClient, TaskAborted
from tests.support.apps import MakeApp
from tests.support.waiting import BOUND

# Celery's own backend, with a redis-py that is newer.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex")


@pytest.fixture(params=["PostgreSQL", "Redis"])
def app(request: pytest.FixtureRequest, dsn: str, make_app: MakeApp) -> Celery:
    """An app with its results in Celery's own backend, in PostgreSQL or in Redis."""
    settings: dict[str, Any] = {}
    if request.param == "Redis":
        url = request.getfixturevalue("redis_url")
        settings = {"result_backend": url, "aioabort_dsn": dsn}
    # Only the code under test reads the result again.
    return make_app(dsn, aioabort_poll_interval=3_600.0, **settings)


class Race:
    """Two runs of one task: the first publishes the second, and then stores RETRY."""

    def __init__(self, app: Celery) -> None:
        self.task_id = str(uuid4())
        self.ended: list[str] = []
        #: Set to let each run go on: the first stores RETRY, the second is settled.
        self.may_retry, self.may_settle = threading.Event(), threading.Event()
        self.published, self.stored = threading.Event(), threading.Event()
        race = self

        class Racing(AbortableTask):  # type: ignore[type-arg]
            abstract = True

            def after_return(self, state: str, *_: Any) -> None:
                """Wait: REVOKED is stored, and the outcome is not recorded."""
                race.ended.append(state)
                race.stored.set()
                assert race.may_settle.wait(BOUND)

        @app.task(bind=True, base=Racing, shared=False, name="racing")
        def task(self: AbortableTask) -> None:  # type: ignore[type-arg]
            raise self.retry(countdown=0)

        self._app, self._task = app, task

    def run(self, retries: int) -> None:
        """Run the task as a worker does."""
        request: dict[str, Any] = {
            "id": self.task_id,
            "hostname": "worker@host",
            "is_eager": False,
            "retries": retries,
            "args": (),
            "kwargs": {},
            "callbacks": None,
        }
        trace_task(self._task, self.task_id, (), {}, request, app=self._app)

    def on_publish(self, **_: object) -> None:
        """Let the first run wait between the two steps of its end."""
        self.published.set()
        assert self.may_retry.wait(BOUND)


@pytest.fixture
def race(app: Celery) -> Iterator[Race]:
    """A race; no worker receives the retry."""
    race = Race(app)
    signals.after_task_publish.connect(race.on_publish)
    yield race
    signals.after_task_publish.disconnect(race.on_publish)


async def wait(event: threading.Event) -> None:
    assert await to_thread.run_sync(event.wait, BOUND)


async def ends_aborted(app: Celery, race: Race) -> None:
    """Check that a client that waits gets TaskAborted."""
    async with AbortClient(app) as client:
        with pytest.raises(TaskAborted, match="enough"):
            await client.wait(race.task_id, timeout=BOUND)
    got = partial(app.AsyncResult(race.task_id).get, timeout=BOUND)
    with pytest.raises(TaskAborted, match="enough"):
        await to_thread.run_sync(got)
    assert race.ended == [states.REVOKED]


def start(run: Callable[[int], None], retries: int) -> "asyncio.Task[None]":
    return asyncio.create_task(asyncio.to_thread(run, retries))


async def test_the_abort_is_settled_first(app: Celery, race: Race) -> None:
    """The first run reads that, and stores REVOKED again.

    published | the second: REVOKED, settled | the first: RETRY, reads, REVOKED
    """
    async with AbortClient(app) as client:
        first = start(race.run, 0)
        await wait(race.published)
        await client.abort(race.task_id, reason="enough")
        race.may_settle.set()
        await start(race.run, 1)
        snapshot = await client.snapshot(race.task_id)
        assert snapshot.request is not None
        assert snapshot.request.outcome == "aborted"
        race.may_retry.set()
        await first
    await ends_aborted(app, race)


async def test_retry_is_stored_first(app: Celery, race: Race) -> None:
    """The second run reads that, and stores REVOKED again.

    published | the second: REVOKED | the first: RETRY, reads | settled, reads, REVOKED
    """
    async with AbortClient(app) as client:
        first = start(race.run, 0)
        await wait(race.published)
        await client.abort(race.task_id, reason="enough")
        second = start(race.run, 1)
        await wait(race.stored)
        race.may_retry.set()
        await first
        assert app.AsyncResult(race.task_id).state == states.RETRY
        race.may_settle.set()
        await second
    await ends_aborted(app, race)
