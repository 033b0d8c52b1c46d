"""Outcomes that a killed child had not recorded.

A child reports the end of a task to the main process, which acknowledges the message at
once. The child records the outcome in PostgreSQL a moment later. If it is killed in
between, only the main process can record it.
"""

import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from billiard.pool import EX_OK, EX_RECYCLE
from celery import Task, signals
from celery.app.task import Context
from celery.worker import state

from aioabort.celery_compat import process_pool_of
from aioabort.worker.main_process.recorder import (
    EndedTask,
    record_handed_over,
    record_outcome,
    wait_at_shutdown,
)

#: Tasks that are kept for each child: during an outage, many may not be recorded.
MOST_PER_CHILD = 1_000

#: The latest tasks by pid and by task id, the oldest first.
_tasks: defaultdict[int, dict[str, Any]] = defaultdict(dict)
#: The pool of processes of this worker, if it has one.
_pool: Any = None
_app: Any = None


class OnProcessDown:
    """A pool's callback for the end of a child: Celery's own, and then ours."""

    def __init__(self, celery_callback: Callable[[Any], None] | None) -> None:
        self._celery_callback = celery_callback

    def __call__(self, process: Any) -> None:
        """Record the outcomes that *process* left unrecorded, unless it exited normally."""
        if self._celery_callback is not None:
            self._celery_callback(process)
        # Celery ends the active tasks itself, or runs them again. They are read before
        # our own list: a task that is revoked meanwhile leaves our list first.
        active = {request.id for request in state.active_requests}
        tasks = _tasks.pop(process.pid, {})
        record_handed_over(_app)
        if process.exitcode in {EX_OK, EX_RECYCLE}:
            return
        for task_id, task in tasks.copy().items():
            if task_id not in active:
                context = Context(id=task_id)
                record_outcome(EndedTask(task, context, "aborted", is_stored=True))


def note_task(pid: int, task: "Task[..., Any]", task_id: str) -> None:
    """Note that *pid* runs the task, if *pid* is a child of a pool."""
    if _pool is None or pid == os.getpid():
        return
    # Celery replaces the callback when it reconnects to the broker.
    if not isinstance(_pool.on_process_down, OnProcessDown):
        _pool.on_process_down = OnProcessDown(_pool.on_process_down)
    tasks = _tasks[pid]
    tasks[task_id] = task
    if len(tasks) > MOST_PER_CHILD:
        tasks.pop(next(iter(tasks)), None)


def drop_task(pid: Any, task_id: str) -> None:
    """Forget that *pid* runs the task: the caller records its outcome."""
    if pid in _tasks:
        _tasks[pid].pop(task_id, None)


def _find_pool(sender: Any, **_: object) -> None:
    global _app, _pool
    _app, _pool = sender.app, process_pool_of(sender)


def _record_at_shutdown(**_: object) -> None:
    if _app is not None:
        record_handed_over(_app)
    wait_at_shutdown()


signals.worker_ready.connect(_find_pool, weak=False)
signals.worker_shutdown.connect(_record_at_shutdown, weak=False)
