"""What is known of a task and of the request to abort it, as plain facts."""

from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Literal, TypeVar

from celery import states

from aioabort.exceptions import TaskAborted

#: The state that ``abort()`` gives to Celery's row, as in celery.contrib.abortable.
ABORTED = "ABORTED"

R_co = TypeVar("R_co", covariant=True)

#: How a task that was asked to stop ended: it stopped (``aborted``), it saw the
#: request and returned a value or failed all the same, it ended without having seen
#: it (``too_late``; ``unkillable`` if its grace was over, but its pool could not kill
#: it), or its process was ended (``killed``).
Outcome = Literal["aborted", "returned", "failed", "too_late", "unkillable", "killed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortRequest:
    """Who asked a task to stop, why and when, and what became of it."""

    task_id: str
    requested_at: datetime
    reason: str | None = None
    requested_by: str | None = None
    kill_at: datetime | None = None
    seen_at: datetime | None = None
    seen_by: str | None = None
    outcome: Outcome | None = None
    outcome_at: datetime | None = None

    @property
    def is_pending(self) -> bool:
        """Whether the task is still to stop: no run has ended since the request."""
        return self.outcome is None

    def error(self) -> TaskAborted:
        """Return the exception that this request raises, in the task and after it."""
        return TaskAborted(self.reason, self.requested_by, self.task_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """A task's row and its request, as stored: the result is still encoded.

    ``kill_in``: seconds until the request's grace is over, by the server's clock.
    """

    task_id: str
    state: str | None = None
    result: bytes | None = None
    traceback: str | None = None
    date_done: datetime | None = None
    request: AbortRequest | None = None
    kill_in: float | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the task has ended.

        A task that ignores its result leaves the state at ABORTED; then the outcome
        of the request tells.
        """
        if self.state in states.READY_STATES:
            return True
        settled = self.request is not None and not self.request.is_pending
        return settled and self.state in {None, states.PENDING, ABORTED}

    @property
    def is_aborted(self) -> bool:
        """Whether the task is being aborted, or has ended by it."""
        if self.request is None:
            return self.state == ABORTED
        if self.request.is_pending:
            return self.state not in {states.SUCCESS, states.FAILURE}
        return self.request.outcome in {"aborted", "killed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortReceipt:
    """What ``abort()`` achieved.

    ``requested``: the task is asked to stop, from now on. ``requested_before``: it
    already was; ``request`` says by whom and when. ``finished``: it had ended in
    ``state``, and nothing was changed.
    """

    task_id: str
    answer: Literal["requested", "requested_before", "finished"]
    state: str | None = None
    request: AbortRequest | None = None

    @property
    def is_requested(self) -> bool:
        """Whether an abort of this task is in force, by this request or another."""
        return self.answer != "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSnapshot(Generic[R_co]):
    """A task as PostgreSQL had it at one moment.

    ``result`` is the value of a SUCCESS, the exception of a FAILURE, RETRY or REVOKED,
    and the ``meta`` of a state of the task's own. ``is_aborted``: the task is being
    aborted, or has ended by it; ``is_finished``: it has ended.
    """

    task_id: str
    state: str
    result: R_co | BaseException | object | None = None
    traceback: str | None = None
    date_done: datetime | None = None
    request: AbortRequest | None = None
    is_finished: bool = False
    is_aborted: bool = False
