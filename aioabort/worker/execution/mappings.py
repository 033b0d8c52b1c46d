"""Lets ``map()``, ``starmap()`` and ``chunks()`` stop between two items.

Celery runs the items in a task of its own, which calls the user's task as a function.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

from celery import Celery, Task

from aioabort.worker.execution.run_lifecycle import has_abortable_tasks
from aioabort.worker.execution.task_wrapper import REQUEST_CLASS, run_abortable
from aioabort.worker.token import current_token

#: ``chunks()`` sends one ``celery.starmap`` for each chunk.
MAPPINGS: Final = ("celery.map", "celery.starmap")


def make_mappings_abortable(app: Celery) -> None:
    """Let Celery's mapping tasks check for an abort before each item."""
    for name in MAPPINGS:
        mapping: Any = app.tasks[name]
        if not hasattr(mapping.run, "checks_items"):
            mapping.run = _checking(mapping)
            mapping.Request = REQUEST_CLASS


def _checking(mapping: "Task[..., Any]") -> Any:
    body = mapping.run

    @functools.wraps(body)
    def run(task: Any, it: Iterable[Any]) -> Any:
        return run_abortable(mapping, body, (task, _unless_aborted(it)), {})

    wrapper = cast("Any", run)
    wrapper.is_abortable = wrapper.checks_items = True
    return wrapper


def _unless_aborted(items: Iterable[Any]) -> Iterator[Any]:
    """Yield *items*; raise TaskAborted before the first that comes after the abort."""
    token = current_token()
    for item in items:
        token.raise_if_aborted()
        yield item


def prepare_worker(sender: Any, **_: object) -> None:
    """Do so for the app of the worker *sender*, if any of its tasks can be aborted."""
    if has_abortable_tasks(sender.app):
        make_mappings_abortable(sender.app)
