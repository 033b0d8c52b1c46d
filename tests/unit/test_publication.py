"""The time of a task's publication, in the headers of its messages."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.exceptions import Retry
from celery.worker.request import Request

from aioabort import AbortableTask
from aioabort.publication import published_at
from tests.support.waiting import BOUND


@pytest.fixture
def app() -> Celery:
    """An app without a worker."""
    return Celery("app", broker="memory://", set_as_current=False)


@pytest.fixture
def receive(app: Celery) -> Iterator[Callable[[], Context]]:
    """Return the context in which a worker would run the next task."""

    def receive() -> Context:
        message = queue.get(timeout=BOUND)
        message.ack()
        request: Any = Request(message, app=app, hostname="w@h")
        return Context(request.request_dict)

    with app.connection() as connection, connection.SimpleQueue("celery") as queue:
        yield receive


def test_retry_keeps_the_time(app: Celery, receive: Callable[[], Context]) -> None:
    """A retry is a part of the publication whose run it follows."""

    @app.task(base=AbortableTask, bind=True, shared=False)
    def task(self: Any) -> None:
        self.retry(countdown=0)

    task.delay()
    first = receive()
    task.push_request(**first.__dict__, called_directly=False)
    with pytest.raises(Retry):
        task.retry(countdown=0)
    task.pop_request()
    second = receive()

    assert (second.id, second.retries) == (first.id, 1)
    assert published_at(second) == published_at(first) is not None


def test_each_publication_has_a_time_of_its_own(
    app: Celery, receive: Callable[[], Context]
) -> None:
    """An id that is published anew is not the old one."""

    @app.task(base=AbortableTask, shared=False)
    def task() -> None:
        """Do nothing."""

    task.apply_async(task_id="nightly")
    task.apply_async(task_id="nightly")
    first, second = published_at(receive()), published_at(receive())

    assert first is not None
    assert second is not None
    assert first < second


@pytest.mark.parametrize("time", [None, "yesterday"])
def test_no_time(time: object) -> None:
    """The header of another program is not trusted to be a time."""
    assert published_at(Context(aioabort_published_at=time)) is None
    assert published_at(Context()) is None
