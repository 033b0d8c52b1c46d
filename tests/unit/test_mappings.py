"""Celery's mapping tasks check for an abort before each item."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from aioabort import AbortableTask, TaskAborted
from aioabort.worker.execution.mappings import MAPPINGS, make_mappings_abortable
from aioabort.worker.live_token import LiveToken
from aioabort.worker.token import current
from tests.support.runs import PENDING


@pytest.fixture
def token() -> Iterator[LiveToken]:
    """The token of the mapping task that runs."""
    token = LiveToken("id")
    before = current.set(token)
    yield token
    current.reset(before)


@pytest.mark.parametrize("task_cls", [None, AbortableTask])
@pytest.mark.parametrize("name", MAPPINGS)
def test_items_after_the_abort(
    token: LiveToken, task_cls: type[AbortableTask] | None, name: str
) -> None:
    """The item in which the abort comes is the last one, in every app."""
    options = {} if task_cls is None else {"task_cls": task_cls}
    app = Celery("tests", broker="memory://", set_as_current=False, **options)
    calls: list[int] = []

    @app.task(name="item", shared=False, base=AbortableTask)
    def item(number: int) -> int:
        calls.append(number)
        if number == 2:
            token.abort(PENDING)
        return number

    make_mappings_abortable(app)
    make_mappings_abortable(app)
    mapping: Any = app.tasks[name]
    items: Any = [1, 2, 3] if name == "celery.map" else [(1,), (2,), (3,)]

    assert mapping.run.is_abortable
    assert mapping.Request == AbortableTask.Request
    with pytest.raises(TaskAborted, match="why"):
        mapping.run(task=item.s(), it=items)
    assert calls == [1, 2]
