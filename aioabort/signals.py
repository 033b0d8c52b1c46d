"""aioabort's signals. Connect to them as to Celery's own."""

from celery.utils.dispatch import Signal

#: Sent in the worker when a task with an abort request has ended. *sender* is the task,
#: ``request`` the AbortRequest, and ``outcome`` its outcome.
task_aborted: Signal = Signal(
    name="task_aborted", providing_args=["task_id", "request", "outcome"]
)
