"""The worker's request: what the main process does about the ends of tasks."""

from typing import Any

from celery import signals
from celery.exceptions import Reject
from celery.worker import state
from celery.worker.request import Request

from aioabort.worker.finish import AbortHonoured
from aioabort.worker.parent import End, KnownOutcome, record_end
from aioabort.worker.remains import remember


class AbortableRequest(Request):
    """Celery's request, which tells monitors and PostgreSQL of the end of the task.

    Celery sends no event for a task that ends by Ignore: without one, Flower and other
    monitors would show it as STARTED for ever. And a task whose process was killed, or
    that was revoked before it had one, cannot settle its request to abort by itself.
    """

    _context: Any
    #: This run is over, but the task is not: it is delivered or published again.
    _goes_on: bool = False
    _is_recorded: bool = False

    def on_accepted(self, pid: Any, time_accepted: Any) -> None:
        """Note which process runs the task."""
        super().on_accepted(pid, time_accepted)
        remember(pid, self.task, self.id)

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
        """Announce an honoured abort as ``task-revoked``; leave the rest to Celery."""
        # From another process, it comes wrapped up with its traceback.
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, AbortHonoured):
            return self._announce_aborted()
        result = super().on_failure(exc_info, *args, **options)
        if not options.get("return_ok") or isinstance(error, Reject):
            # It was not its own process that ended it.
            self._record("failed")
        return result

    def on_timeout(self, soft: Any, timeout: Any) -> Any:
        """Record the end of a task that its pool kills for its time limit."""
        super().on_timeout(soft, timeout)
        if not soft:
            self._record("failed")

    def reject(self, requeue: Any = None) -> Any:
        """Note that the task is delivered again, if it is."""
        self._goes_on = self._goes_on or bool(requeue)
        super().reject(bool(requeue))

    def _announce_aborted(self) -> None:
        state.task_ready(self)
        facts = {"terminated": False, "signum": None, "expired": False}
        self.send_event("task-revoked", **facts)
        self.acknowledge()
        signals.task_revoked.send(sender=self.task, request=self._context, **facts)

    def _announce_revoked(
        self, reason: Any, terminated: Any, signum: Any, expired: Any
    ) -> None:
        celerys: Any = super()
        celerys._announce_revoked(reason, terminated, signum, expired)
        if terminated:
            self._record("killed")
        else:
            # Revoked before its body, a task has done what its request asked for.
            self._record("too_late" if expired else "aborted")

    def _announce_cancelled(self, *args: Any, **options: Any) -> None:
        # The connection to the broker was lost, or the worker shuts down.
        self._goes_on = True
        celerys: Any = super()
        celerys._announce_cancelled(*args, **options)

    def _retry_worker_lost(self, *args: Any) -> bool:
        celerys: Any = super()
        self._goes_on = bool(celerys._retry_worker_lost(*args))
        return self._goes_on

    def _record(self, outcome: KnownOutcome) -> None:
        is_ending = state.should_terminate not in {None, False}
        if not (self._goes_on or self._is_recorded or is_ending):
            self._is_recorded = True
            record_end(End(self.task, self._context, outcome))
