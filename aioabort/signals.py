"""Signals in the manner of Celery's."""

from celery.utils.dispatch import Signal

#: Sent in the worker when a task that was asked to stop has ended. *sender* is the task.
task_aborted: Signal = Signal(
    name="task_aborted", providing_args=["task_id", "request", "outcome"]
)
