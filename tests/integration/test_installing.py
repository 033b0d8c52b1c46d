"""What an app hands out after ``install(app)``."""

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, chain, current_app, group
from celery.result import GroupResult, result_from_tuple

from aioabort import AbortableAsyncResult, install


@pytest.fixture
def current(app: Celery) -> Iterator[None]:
    """``app`` is the one that unpickled results find."""
    previous: Any = current_app._get_current_object()
    app.set_current()
    yield
    previous.set_current()


def nodes(result: Any) -> list[Any]:
    """Return a result and its parents."""
    found = []
    while result is not None:
        found.append(result)
        result = result.parent
    return found


async def test_results_by_id_can_be_aborted_and_awaited(app: Celery) -> None:
    """``app.AsyncResult(id)`` is all that an id from a URL needs."""
    install(app)
    result: Any = app.AsyncResult("id")
    assert isinstance(result, AbortableAsyncResult)
    assert result.app is app
    assert (await result.abort(reason="why")).is_requested
    assert await result.is_aborted()
    assert (await result.snapshot()).state == "ABORTED"


def test_tasks_sent_by_name_and_plain_tasks(app: Celery) -> None:
    """``send_task()`` knows no task, and a plain one has Celery's results: not here."""
    install(app)

    @app.task(shared=False, name="plain")
    def plain() -> None: ...

    assert isinstance(app.send_task("unknown"), AbortableAsyncResult)
    assert isinstance(plain.delay(), AbortableAsyncResult)
    last = chain(plain.si(), plain.si()).delay()
    assert [type(node) for node in nodes(last)] == [app.AsyncResult] * 2


@pytest.mark.usefixtures("current")  # Celery before 5.7 pickles them
def test_restored_results(app: Celery) -> None:
    """Members, parents and their parents, from the backend, a tuple or a pickle."""
    install(app)

    @app.task(shared=False, name="plain")
    def plain() -> None: ...

    sent = group(chain(plain.si(), plain.si()), plain.si()).delay()
    sent.save()
    for restored in (
        GroupResult.restore(sent.id, app=app),
        app.GroupResult.restore(sent.id),
        result_from_tuple(sent.as_tuple(), app),
    ):
        members: Any = restored
        assert [member.id for member in members] == [member.id for member in sent]
        found = [*nodes(members[0]), *nodes(members[1])]
        assert len(found) == 3
        assert all(isinstance(node, AbortableAsyncResult) for node in found)


@pytest.mark.usefixtures("current")
def test_a_pickled_result_is_the_apps_again(app: Celery) -> None:
    """It is looked up in the app that is the current one where it is unpickled."""
    install(app)
    result = pickle.loads(pickle.dumps(app.AsyncResult("id")))
    assert isinstance(result, AbortableAsyncResult)
    assert result.id == "id"
    assert result.app is app


def test_to_install_twice_does_no_harm(app: Celery) -> None:
    """Installing twice, by different callers, changes nothing either."""
    install(app)
    first = app.AsyncResult
    install(app)
    assert app.AsyncResult is first
