"""The Celery app of the workers: the same bodies for each kind of task."""

import json
import os
import threading
import time
import timeit
from collections.abc import Callable
from typing import Any

from celery import Celery, Task
from celery.contrib.abortable import AbortableTask as OriginalTask

from aioabort import AbortableTask, TaskAborted, current_token

from . import bodies
from .bodies import LONG, TURNS
from .marks import mark

VARIABLE = "AIOABORT_BENCH_SETTINGS"

#: The task that tells of a worker that works.
READY = "plain.ready"

#: Of a check that is measured; the original asks the database at each.
CHECKS = {"ours": 100_000, "contrib": 10}

KINDS: dict[str, type[Any]] = {
    "plain": Task,
    "contrib": OriginalTask,
    "ours": AbortableTask,
}


def ready(_task: Any, key: str) -> None:
    """Tell that the worker works."""
    mark(key, "ready")


def noop(_task: Any) -> None:
    """Do nothing."""


def last(_task: Any, key: str) -> None:
    """Tell that those before it are done."""
    mark(key, "last")


def loop(task: Any, key: str) -> None:
    """Look again and again, as both libraries document it."""
    bodies.loop(key, task.is_aborted)


def wait(task: Any, key: str) -> None:
    """Wait for the abort and nothing else."""
    mark(key, "started")
    task.abort_token.wait(LONG)
    mark(key, "stopped")


def sleep(_task: Any, key: str) -> None:
    """Never look."""
    mark(key, "started")
    try:
        time.sleep(LONG)
    except TaskAborted:
        mark(key, "stopped")
        raise


async def coroutine(_task: Any, key: str) -> None:
    """Wait in a coroutine, which is cancelled."""
    await bodies.until_cancelled(key)


def check(task: Any, key: str) -> None:
    """Tell the seconds of one look, by each way there is."""
    kind = task.name.split(".")[0]
    names = {"task": task, "token": current_token(), "event": threading.Event()}
    ways = {"self.is_aborted()": ("task.is_aborted()", CHECKS[kind])}
    if kind == "ours":
        ways["token.aborted"] = ("token.aborted", CHECKS[kind])
        ways["Event.is_set()"] = ("event.is_set()", CHECKS[kind])
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(TURNS):
        for way, (statement, count) in ways.items():
            took = timeit.timeit(statement, globals=names, number=count)
            times[way].append(took / count)
    mark(key, "checked", json.dumps(times))


def make_project(settings: dict[str, Any]) -> Celery:
    """Return the app with these *settings*."""
    app = Celery("aioabort-bench", set_as_current=False)
    app.conf.update(settings)
    register(app, "plain", ready)
    register(app, "plain", sleep)
    register(app, "plain", last)
    for kind in KINDS:
        register(app, kind, noop)
    for kind in ("contrib", "ours"):
        register(app, kind, loop)
        register(app, kind, check)
    register(app, "ours", wait)
    register(app, "ours", coroutine)
    register(app, "ours", sleep, abort_mode="raise")
    return app


def register(app: Celery, kind: str, body: Callable[..., Any], **options: Any) -> None:
    """Make a task of *body*, by the name ``kind.body``."""
    name = f"{kind}.{body.__name__}"
    app.task(bind=True, base=KINDS[kind], name=name, **options)(body)


if VARIABLE in os.environ:
    app = make_project(json.loads(os.environ[VARIABLE]))
