"""The request class of abortable tasks: what the main process does when they end."""

import logging
from typing import Any

from celery import signals
from celery.exceptions import Reject, TaskRevokedError
from celery.worker import state
from celery.worker.request import Request

from aioabort.worker.final_state import store_revoked
from aioabort.worker.main_process.lost_children import drop_task, note_task
from aioabort.worker.main_process.recorder import (
    EndedTask,
    KnownOutcome,
    record_outcome,
)
from aioabort.worker.main_process.startup import report_at_start
from aioabort.worker.workflow import AbortHonoured

logger: logging.Logger = logging.getLogger(__name__)


class AbortableRequest(Request):
    """Celery's request, which also reports ends that Celery or the child do not report.

    Celery sends no event for a task that ends by Ignore: Flower and other monitors would
    show it as STARTED for ever. And a task whose child was killed, or that was revoked
    before it had a child, cannot settle its abort request itself.
    """

    _context: Any
    #: This run is over, but the task is not: it is delivered or published again.
    _goes_on: bool = False
    _is_recorded: bool = False
    #: REVOKED is stored, or must not replace the result of another run.
    _is_end_stored: bool = False

    @property
    def store_errors(self) -> bool:
        """Whether Celery stores the end of the task."""
        return bool(super().store_errors) and not self._is_end_stored

    def on_accepted(self, pid: Any, time_accepted: Any) -> None:
        """Note which child runs the task."""
        super().on_accepted(pid, time_accepted)
        note_task(pid, self.task, self.id)

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
        """Announce an honoured abort as ``task-revoked``; leave the rest to Celery."""
        # A child sends an exception wrapped up with its traceback.
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, AbortHonoured):
            return self._announce_aborted()
        result = super().on_failure(exc_info, *args, **options)
        if not options.get("return_ok") or isinstance(error, Reject):
            # The child has not stored this end: it was lost, or it rejected the task.
            self._record("failed")
        return result

    def on_retry(self, exc_info: Any) -> None:
        """Let a revoked task end as REVOKED if its RETRY was stored after that.

        Celery publishes a retry first, and stores RETRY afterwards. Meanwhile a worker
        may discard the retry, and store REVOKED.
        """
        super().on_retry(exc_info)
        if self.id in state.revoked:
            record_outcome(
                EndedTask(self.task, self._context, "aborted", is_discarded_retry=True)
            )

    def on_timeout(self, soft: Any, timeout: Any) -> Any:
        """Record the end of a task that the pool kills for its hard time limit."""
        super().on_timeout(soft, timeout)
        if not soft:
            self._record("failed")

    def reject(self, requeue: Any = None) -> Any:
        """Note whether the task is delivered again."""
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
        # Before Celery counts the task as ended: if its child is gone already, the task
        # would be recorded twice.
        drop_task(self.worker_pid, self.id)
        if terminated and self.store_errors:
            self._store_revoked(TaskRevokedError(reason))
        base: Any = super()
        base._announce_revoked(reason, terminated, signum, expired)
        if terminated:
            self._record("killed")
        else:
            # A task that was revoked before its body has done what an abort asks for.
            self._record("too_late" if expired else "aborted")

    def _store_revoked(self, error: TaskRevokedError) -> None:
        """Store the end of a killed run; another run of the task may have a result."""
        try:
            store_revoked(self.task.backend, self._context, error)
        except Exception:
            # Celery tries once more, in its own way.
            logger.exception("Task %s: its end could not be stored", self.id)
        else:
            self._is_end_stored = True

    def _announce_cancelled(self, *args: Any, **options: Any) -> None:
        # The connection to the broker was lost, or the worker shuts down.
        self._goes_on = True
        base: Any = super()
        base._announce_cancelled(*args, **options)

    def _retry_worker_lost(self, *args: Any) -> bool:
        base: Any = super()
        self._goes_on = bool(base._retry_worker_lost(*args))
        return self._goes_on

    def _record(self, outcome: KnownOutcome) -> None:
        is_stopping = state.should_terminate not in {None, False}
        if not (self._goes_on or self._is_recorded or is_stopping):
            self._is_recorded = True
            record_outcome(EndedTask(self.task, self._context, outcome))


# Celery imports this module when a worker with an abortable task starts.
signals.worker_ready.connect(report_at_start, weak=False)
