"""A task ends, with its result outside PostgreSQL, while a client requests its abort."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from celery import Celery, states

from aioabort import AbortClient, AbortRequest, TaskAborted
from aioabort.client.external_results import ExternalResults
from aioabort.models import TaskRow
from aioabort.postgres.pool import open_pool
from aioabort.postgres.request_store import RequestStore, open_request_store
from aioabort.settings import read_settings
from tests.integration.steps import end
from tests.support.apps import MakeApp
from tests.support.waiting import BOUND

# Celery's own backend, with a redis-py that is newer.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex")


@pytest.fixture
def app(empty_dsn: str, external_url: str, make_app: MakeApp) -> Celery:
    """An app whose results are not in PostgreSQL."""
    return make_app(empty_dsn, aioabort_dsn=empty_dsn, result_backend=external_url)


@pytest.fixture
async def store(app: Celery) -> AsyncIterator[RequestStore]:
    """What the workers record in PostgreSQL."""
    settings = read_settings(app)
    async with open_pool(settings.dsn, 1, settings.timing) as pool:
        yield await open_request_store(pool, settings)


#: What happens after the client's next read of the results.
Then = Callable[[Any], None]


@pytest.fixture
def then(monkeypatch: pytest.MonkeyPatch) -> Iterator[Then]:
    """Lets something happen when the client has read the results, once."""
    acts: list[Any] = []
    read = ExternalResults.read_snapshots

    async def read_then_act(self: Any, task_ids: Any) -> dict[str, TaskRow]:
        rows = await read(self, task_ids)
        if acts:
            await acts.pop()()
        return rows

    monkeypatch.setattr(ExternalResults, "read_snapshots", read_then_act)
    yield acts.append
    assert not acts


async def request_of(client: AbortClient, task_id: str) -> AbortRequest:
    request = (await client.snapshot(task_id)).request
    assert request is not None
    return request


async def test_a_request_that_is_settled_meanwhile_stays(
    client: AbortClient, store: RequestStore, task_id: str, then: Then
) -> None:
    """The second abort comes too late, and leaves the outcome of the first alone.

    second abort: reads STARTED | the task: REVOKED, outcome | second abort: stores nothing
    """
    await end(client.app, task_id, {}, states.STARTED)
    first = (await client.abort(task_id, reason="first", requested_by="ann")).request
    assert first is not None

    async def stop() -> None:
        await end(client.app, task_id, TaskAborted("first"), states.REVOKED)
        await store.record_outcomes([first], ["aborted"], [0.0])

    then(stop)
    receipt = await client.abort(task_id, reason="second")

    assert (receipt.answer, receipt.state) == ("finished", "REVOKED")
    request = await request_of(client, task_id)
    assert (request.reason, request.requested_by) == ("first", "ann")
    assert request.outcome == "aborted"


async def test_a_request_whose_task_has_ended_meanwhile_is_settled(
    client: AbortClient, task_id: str, then: Then
) -> None:
    """No worker would settle it: when the task ended, there was no request.

    abort: reads STARTED | the task: SUCCESS, queries | abort: stores, reads SUCCESS
    """
    await end(client.app, task_id, {}, states.STARTED)
    then(lambda: end(client.app, task_id, 1))
    receipt = await client.abort(task_id)

    assert (await request_of(client, task_id)).outcome == "too_late"
    assert await receipt.settled(BOUND) == "too_late"
    assert (await client.snapshot(task_id)).result == 1


async def test_a_task_that_is_revoked_meanwhile(
    client: AbortClient, task_id: str, then: Then
) -> None:
    """It has done what the abort asks for.

    abort: reads PENDING | Celery: REVOKED | abort: stores, reads REVOKED
    """
    then(lambda: end(client.app, task_id, TaskAborted(), states.REVOKED))
    await client.abort(task_id)

    assert (await request_of(client, task_id)).outcome == "aborted"


async def test_a_task_without_a_result_that_has_ended_meanwhile(
    client: AbortClient, store: RequestStore, task_id: str, then: Then
) -> None:
    """Only its outcome says so: the abort is for what is published later.

    second abort: reads nothing | the task: outcome | second abort: reads it, replaces it
    """
    first = (await client.abort(task_id, reason="first")).request
    assert first is not None
    then(lambda: store.record_outcomes([first], ["aborted"], [0.0]))
    receipt = await client.abort(task_id, reason="second")

    assert receipt.answer == "requested"
    request = await request_of(client, task_id)
    assert (request.reason, request.outcome) == ("second", None)


async def test_the_results_are_away_when_the_abort_is_stored(
    client: AbortClient,
    task_id: str,
    then: Then,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The abort is requested all the same; its worker settles it."""

    async def go_away() -> None:
        def fail(*_: object, **__: object) -> None:
            raise ConnectionError("away")

        for name in ("mget", "get_task_meta"):
            monkeypatch.setattr(client.app.backend, name, fail, raising=False)

    then(go_away)
    receipt = await client.abort(task_id)
    assert receipt.answer == "requested"
