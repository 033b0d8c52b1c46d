"""The worker's request: what monitors are told of a task that honoured its abort."""

from typing import Any

from celery import signals
from celery.worker.request import Request
from celery.worker.state import task_ready

from aioabort.worker.finish import AbortHonoured


class AbortableRequest(Request):
    """Celery's request, which sends no event for a task that ends by Ignore.

    Without one, Flower and other monitors would show the task as STARTED for ever.
    """

    _context: Any

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Announce an honoured abort as ``task-revoked``; leave the rest to Celery."""
        # From another process, it comes wrapped up with its traceback.
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if not isinstance(error, AbortHonoured):
            return super().on_failure(exc_info, *args, **kwargs)
        task_ready(self)
        facts = {"terminated": False, "signum": None, "expired": False}
        self.send_event("task-revoked", **facts)
        self.acknowledge()
        signals.task_revoked.send(sender=self.task, request=self._context, **facts)
        return None
