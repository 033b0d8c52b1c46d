"""Signals in the manner of Celery's."""

from celery.utils.dispatch import Signal

#: Sent in the worker when a task that was asked to stop has ended. *sender* is the task,
#: ``request`` the AbortRequest, ``outcome`` one of its outcomes.
task_aborted: Signal = Signal(
    name="task_aborted", providing_args=["task_id", "request", "outcome"]
)
