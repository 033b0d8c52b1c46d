"""What is known of a task and of the request to abort it, as plain facts."""

from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import partial
from typing import Any, Generic, Literal, Protocol, TypeVar

from celery import states

from aioabort.exceptions import ClientClosed, TaskAborted

#: The state that ``abort()`` gives to Celery's row, as in celery.contrib.abortable.
ABORTED = "ABORTED"

R_co = TypeVar("R_co", covariant=True)

#: How a task that was asked to stop ended: it stopped (``aborted``), it saw the
#: request and returned a value or failed all the same, it ended without having seen
#: it (``too_late``; ``unkillable`` if its grace was over, but its pool could not kill
#: it), or its process was ended (``killed``).
Outcome = Literal["aborted", "returned", "failed", "too_late", "unkillable", "killed"]


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can hold *text*: no NUL, and no half of a surrogate pair."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortRequest:
    """Who asked a task to stop, why and when, and what became of it.

    All moments are PostgreSQL's, with a time zone. ``kill_at``: when a grace is over,
    if one was given. ``seen_at``: the task noticed, in the process ``seen_by`` (its
    node and pid). ``outcome`` is None until a run has ended.
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
        """Whether the task is still to stop, as no run has ended since the request."""
        return self.outcome is None

    def error(self) -> TaskAborted:
        """Return the exception that this request raises, in the task and after it."""
        return TaskAborted(self.reason, self.requested_by, self.task_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A request that has come further: its task noticed it, or ended as *outcome*.

    That was *after* so many seconds, and is *ago* so many.
    """

    task_id: str
    after: float
    ago: float
    outcome: Outcome | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """A task's row and its request, as stored: the result is still encoded.

    ``kill_in``: seconds until the request's grace is over, by the server's clock.
    It does not make two rows differ.
    """

    task_id: str
    state: str | None = None
    result: bytes | None = None
    traceback: str | None = None
    date_done: datetime | None = None
    request: AbortRequest | None = None
    kill_in: float | None = field(default=None, compare=False)

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


class Follower(Protocol):
    """What follows a request to abort, after it was made."""

    async def seen(self, task_id: str, timeout: float | None) -> AbortRequest | None:
        """Return the request when its task has noticed it; None if it ended before."""
        ...

    async def settled(self, task_id: str, timeout: float | None) -> Outcome:
        """Return how the task ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortReceipt:
    """What ``abort()`` achieved.

    ``requested``: the task is asked to stop, from now on. ``requested_before``: it
    already was; ``request`` says by whom and when. ``finished``: it had ended in
    ``state``, and nothing was changed. ``before``: the receipts of the tasks that come
    before it in its chain or chord, and were asked along with it.
    """

    task_id: str
    answer: Literal["requested", "requested_before", "finished"]
    state: str | None = None
    request: AbortRequest | None = None
    before: "tuple[AbortReceipt, ...]" = field(default=(), repr=False)
    follower: Follower | None = field(default=None, repr=False, compare=False)

    @property
    def is_requested(self) -> bool:
        """Whether an abort of this task is in force, by this request or another."""
        return self.answer != "finished"

    async def seen(self, timeout: float | None = None) -> AbortRequest | None:
        """Return the request when the task has noticed it, with when and where.

        None if the task ended without noticing, or had ended. Raises WaitTimeout after
        *timeout* seconds.
        """
        return await self._follower.seen(self.task_id, timeout)

    async def settled(self, timeout: float | None = None) -> Outcome:
        """Return how the task ended: ``too_late`` also if it had ended.

        Raises WaitTimeout after *timeout* seconds. What no worker has recorded some
        seconds after the task's end is concluded from that end.
        """
        return await self._follower.settled(self.task_id, timeout)

    @property
    def _follower(self) -> Follower:
        if self.follower is None:
            raise ClientClosed(
                f"The receipt of task {self.task_id!r} has no client: it was pickled, "
                "or copied, or nobody had to be asked for it"
            )
        return self.follower

    def __reduce__(self) -> tuple[Any, ...]:
        """Leave the client behind: it belongs to this process and its loop."""
        # A __getstate__ of ours is replaced by older patches of Python 3.11.
        facts = {each.name: getattr(self, each.name) for each in fields(self)}
        del facts["follower"]
        return partial(type(self), **facts), ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSnapshot(Generic[R_co]):
    """A task as PostgreSQL had it at one moment.

    ``result`` is the value of a SUCCESS, the exception of a FAILURE, RETRY or REVOKED,
    and the ``meta`` of a state of the task's own. ``date_done``, with a time zone, is
    when Celery stored the state. ``is_aborted``: the task is being aborted, or has
    ended by it; ``is_finished``: it has ended.
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
    """How a client hears of what happens, and how late at most.

    ``mode``: by notifications and a slow poll, or by a faster poll alone; ``reason``
    says why alone. ``staleness``: how many seconds old an answer may be while
    PostgreSQL can be reached, not counting the query. ``waiters``: how many wait or
    watch. ``is_connected``: nothing that was tried lately has failed; ``last_error``
    stays after that.
    """

    mode: Literal["notify", "poll"]
    reason: str | None
    staleness: float
    waiters: int
    is_connected: bool
    last_error: str | None
