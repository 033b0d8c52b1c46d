"""What a process that is killed leaves unrecorded: how its latest tasks ended.

A child tells the main process of an end at once, which acknowledges the task, and
PostgreSQL a moment later. What is killed in between, nobody else would record.
"""

import os
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from billiard.pool import EX_OK, EX_RECYCLE
from celery import Task, signals
from celery.app.task import Context
from celery.worker import state

from aioabort.worker.parent import End, record_end

#: Tasks of a process that may not be recorded: those of an outage of PostgreSQL.
MOST = 1_000

_latest: defaultdict[int, deque[tuple[Any, str]]] = defaultdict(
    lambda: deque(maxlen=MOST)
)
#: The pool of billiard's that the worker has, if it is of processes.
_pool: Any = None


class OnProcessDown:
    """Celery's own callback for the end of a process, and ours after it."""

    def __init__(self, celerys: Callable[[Any], None] | None) -> None:
        self._celerys = celerys

    def __call__(self, process: Any) -> None:
        """Record what *process* cannot have recorded, unless it ended in peace."""
        if self._celerys is not None:
            self._celerys(process)
        tasks = _latest.pop(process.pid, ())
        if process.exitcode in {EX_OK, EX_RECYCLE}:
            return
        # Whether one that did not end is to be run again is for Celery to find out.
        active = {request.id for request in state.active_requests}
        for task, task_id in tasks:
            if task_id not in active:
                record_end(End(task, Context(id=task_id), "aborted", is_stored=True))


def remember(pid: int, task: "Task[..., Any]", task_id: str) -> None:
    """Note that *pid* runs the task, if that is a process of a pool."""
    # Celery makes its callback anew when it has lost the broker.
    if hasattr(_pool, "on_process_down") and pid != os.getpid():
        if not isinstance(_pool.on_process_down, OnProcessDown):
            _pool.on_process_down = OnProcessDown(_pool.on_process_down)
        _latest[pid].append((task, task_id))


def _find_pool(sender: Any, **_: object) -> None:
    global _pool  # noqa: PLW0603
    _pool = getattr(sender.pool, "_pool", None)


signals.worker_ready.connect(_find_pool, weak=False)
