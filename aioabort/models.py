"""The state of a task and of its abort request, as immutable records."""

from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar

from celery import states

from aioabort.exceptions import ClientClosed, TaskAborted

#: The state that ``abort()`` stores in Celery's table, as celery.contrib.abortable does.
ABORTED = "ABORTED"

#: The states of a task that has returned or failed. REVOKED never replaces them.
RESULT_STATES = frozenset({states.SUCCESS, states.FAILURE})

R_co = TypeVar("R_co", covariant=True)

#: How a task with an abort request ended. It stopped (``aborted``); it saw the request,
#: and returned a value or failed all the same; it ended without seeing the request
#: (``too_late``, or ``unkillable`` if its grace was over, but its pool cannot kill); or
#: its process was killed.
Outcome = Literal["aborted", "returned", "failed", "too_late", "unkillable", "killed"]


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can store *text*: no NUL, and no lone surrogate."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortRequest:
    """Who requested the abort of a task, why and when, and how the task ended.

    All times are PostgreSQL's, with a time zone. ``kill_at``: when the grace ends, if
    there is one. ``seen_at``: when the task saw the request, in the process ``seen_by``
    (its node and pid). ``outcome``: None until a run of the task has ended.
    """

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
        """Whether no run of the task has ended since the request."""
        return self.outcome is None

    def error(self) -> TaskAborted:
        """Return the exception that this request raises in the task and in waiters."""
        return TaskAborted(self.reason, self.requested_by, self.task_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A step of an abort request: its task saw it, or ended with *outcome*.

    That was *after* seconds after the request, and *ago* seconds before now.
    """

    task_id: str
    after: float
    ago: float
    outcome: Outcome | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """The stored state of a task and its abort request; the result is still encoded.

    ``kill_in``: seconds until the grace ends, by PostgreSQL's clock. ``version`` changes
    whenever Celery's row is written. Two rows that differ in these alone are equal.

    ``unread_size``: the bytes of the result and the traceback, if the row lacks them
    because they are large. ``content_encoding``: how django-celery-results has encoded
    the result; None for other backends.
    """

    task_id: str
    state: str | None = None
    result: bytes | None = None
    content_encoding: str | None = None
    traceback: str | None = None
    date_done: datetime | None = None
    request: AbortRequest | None = None
    unread_size: int | None = None
    version: int | None = field(default=None, compare=False)
    kill_in: float | None = field(default=None, compare=False)

    @property
    def is_finished(self) -> bool:
        """Whether the task has ended.

        A task that ignores its result stays ABORTED. It has ended when the outcome of
        its request is recorded.
        """
        if self.state in states.READY_STATES:
            return True
        settled = self.request is not None and not self.request.is_pending
        return settled and self.state in {None, states.PENDING, ABORTED}

    @property
    def is_aborted(self) -> bool:
        """Whether the task is being aborted, or has ended because of an abort."""
        if self.request is None:
            return self.state == ABORTED
        if self.request.is_pending:
            return self.state not in {states.SUCCESS, states.FAILURE}
        return self.request.outcome in {"aborted", "killed"}


class AbortFollower(Protocol):
    """Waits for the steps of an abort request; a client is one."""

    async def seen(self, task_id: str, timeout: float | None) -> AbortRequest | None:
        """Return the request when its task has seen it; None if it ended before."""
        ...

    async def settled(self, task_id: str, timeout: float | None) -> Outcome:
        """Return how the task ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortReceipt:
    """What ``abort()`` did.

    ``answer`` is ``requested`` if the abort request is new, ``requested_before`` if the
    task had a pending one (``request`` says by whom and when), and ``finished`` if the
    task had ended in ``state``; then nothing was changed. ``before``: the receipts of
    the tasks before it in its chain or chord, which are aborted, too.
    """

    task_id: str
    answer: Literal["requested", "requested_before", "finished"]
    state: str | None = None
    request: AbortRequest | None = None
    before: "tuple[AbortReceipt, ...]" = field(default=(), repr=False)
    follower: AbortFollower | None = field(default=None, repr=False, compare=False)

    @property
    def is_requested(self) -> bool:
        """Whether the task has a pending abort request, a new one or an earlier one."""
        return self.answer != "finished"

    async def seen(self, timeout: float | None = None) -> AbortRequest | None:
        """Return the request, with when and where it was seen, once the task sees it.

        Returns None if the task ends, or has ended, without seeing it. Raises
        WaitTimeout after *timeout* seconds.
        """
        return await self._follower.seen(self.task_id, timeout)

    async def settled(self, timeout: float | None = None) -> Outcome:
        """Return how the task ended; ``too_late`` if it had ended before the abort.

        Raises WaitTimeout after *timeout* seconds. If no worker records the outcome
        within 5 seconds of the task's end, it is derived from the final state.
        """
        return await self._follower.settled(self.task_id, timeout)

    @property
    def _follower(self) -> AbortFollower:
        if self.follower is None:
            raise ClientClosed(
                f"The receipt of task {self.task_id!r} has no client, because it was "
                "pickled or copied, or because the task had ended: "
                "use AbortClient.snapshot() or wait() instead"
            )
        return self.follower

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave out the client, which belongs to this process and its event loop."""
        # Not __getstate__: older patch releases of Python 3.11 replace it.
        facts = {each.name: getattr(self, each.name) for each in fields(self)}
        del facts["follower"]
        return partial(type(self), **facts), ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSnapshot(Generic[R_co]):
    """A task at one moment.

    ``result`` is the value of a SUCCESS, the exception of a FAILURE, RETRY or REVOKED,
    and the ``meta`` of a custom state. ``date_done``, with a time zone, is when Celery
    stored the state. ``is_aborted``: the task is being aborted, or has ended because of
    an abort; ``is_finished``: it has ended.
    """

    task_id: str
    state: str
    result: R_co | BaseException | object | None = None
    traceback: str | None = None
    date_done: datetime | None = None
    request: AbortRequest | None = None
    is_finished: bool = False
    is_aborted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHealth:
    """How a client learns of changes, and how late at most.

    ``mode``: ``notify`` for notifications and a slow poll, ``poll`` for a faster poll
    alone; ``reason`` says why there are no notifications. ``staleness``: the maximum
    age of what the client knows, in seconds, without the duration of the query, while
    PostgreSQL can be reached. ``waiters``: the number of coroutines that wait or watch.
    ``is_connected``: the latest statements have succeeded. ``last_error``: the latest
    error, also after an outage.
    """

    mode: Literal["notify", "poll"]
    reason: str | None
    staleness: float
    waiters: int
    is_connected: bool
    last_error: str | None
