"""One run of a task in this process: its token, its phase, and how it ended."""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from enum import IntEnum
from typing import Final, Literal, Protocol

from celery import Celery, states
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded

from aioabort.concurrency.loop_thread import Event, new_event
from aioabort.models import RESULT_STATES, AbortRequest, Outcome, TaskRow
from aioabort.publication import published_at
from aioabort.timing import Timing
from aioabort.worker.live_token import LiveToken
from aioabort.worker.token import AbortToken, current


class Supervisor(Protocol):
    """Polls PostgreSQL for running tasks, sets their tokens, and records outcomes."""

    @property
    def timing(self) -> Timing:
        """How long a run may wait."""
        ...

    @property
    def interrupt_signal(self) -> int:
        """The signal that interrupts the main thread, with ``abort_mode="raise"``."""
        ...

    def watch(self, run: "Run") -> None:
        """Watch *run*, and poll whether it is aborted; returns at once."""

    def wait_for_first_poll(self, run: "Run") -> None:
        """Return when *run* was polled, or cannot be."""

    def poll_again(self, run: "Run") -> TaskRow | None:
        """Update *run* from a new poll and return the row; None if there is neither."""

    def report_seen(self, run: "Run") -> None:
        """Record that the task noticed its abort request."""

    def report_end(self, run: "Run") -> None:
        """Stop watching *run*, and record its outcome; returns at once."""

    def report_end_now(self, run: "Run") -> None:
        """Do so before this returns, if PostgreSQL can be reached."""


class Phase(IntEnum):
    """Where a run is.

    ::

        CREATED -> CHECKING -> IN_BODY -> OUT_OF_BODY -> ENDED -> LOST
                                  ^            |
                                  +------------+

    A run enters its body more than once if the task has ``before_start``. It skips phases
    if the start check finds an abort, or if Celery never calls the task.
    """

    #: No supervisor watches the run.
    CREATED = 0
    #: The supervisor polls for the first time; the start check waits for it.
    CHECKING = 1
    #: In a wrapped method of the task. Its process may be killed.
    IN_BODY = 2
    #: In Celery's own code. A kill would hit the next task, or Celery's result write.
    OUT_OF_BODY = 3
    #: Celery has stored the result, if there is one.
    ENDED = 4
    #: Celery failed to store the result. No other run of the task follows.
    LOST = 5


class Run(LiveToken):
    """The token of a task that a worker runs, from ``task_prerun`` to ``task_postrun``.

    The thread that runs the task moves it from phase to phase. The agent's thread reads
    the phase, sets the token, and settles the abort request when the run has ended.
    """

    __slots__ = (
        "_is_polled",
        "_is_redelivered",
        "_is_retry",
        "_kill_given_up",
        "_published_at",
        "_settled_before",
        "_unseen_outcome",
        "app",
        "ended_at",
        "ended_without_result",
        "ending",
        "first_poll_done",
        "followers",
        "has_result",
        "node",
        "outcome",
        "outer",
        "phase",
        "pid",
        "seen_at",
        "stored_state",
        "supervisor",
    )

    def __init__(
        self, context: Context, supervisor: Supervisor, app: Celery | None = None
    ) -> None:
        super().__init__(context.id or "")
        self.supervisor: Final = supervisor
        #: The app of the task, over whose broker it is killed. Apps with the same
        #: settings share a supervisor.
        self.app: Final = app
        self.pid: Final = os.getpid()
        self.node: Final = f"{context.hostname} pid {self.pid}"
        self._is_retry: Final = bool(context.retries)
        self._is_redelivered: Final = bool(
            (context.delivery_info or {}).get("redelivered")
        )
        self._published_at: Final = published_at(context)
        #: Set by the first poll, or when PostgreSQL cannot be reached.
        self.first_poll_done: Final = new_event()
        #: The token of the task that this one is called from, if any.
        self.outer: Final[AbortToken] = current.get()
        self.phase: Phase = Phase.CREATED
        #: Whether TaskAborted ended the task, or ``replace()`` gave its id to another.
        self.ending: Literal["honoured", "replaced"] | None = None
        #: The state in Celery's table, as of the latest poll.
        self.stored_state: str | None = None
        #: Whether another run of the task had stored a result when this one was aborted.
        self.has_result: bool = False
        #: The ids of the tasks that do not run, because this run has ended without a
        #: value for them.
        self.followers: Iterable[str] = ()
        #: Whether Celery stores no final state for the run, although it has ended.
        self.ended_without_result: bool = False
        #: Times of the monotonic clock, or 0.
        self.seen_at: float = 0.0
        self.ended_at: float = 0.0
        #: The outcome of a request for this run; None if the task goes on.
        self.outcome: Outcome | None = None
        self._unseen_outcome: Outcome = "too_late"
        self._is_polled = False
        self._settled_before: datetime | None = None
        self._kill_given_up: Event | None = None

    @property
    def has_ended(self) -> bool:
        """Whether Celery is done with the run."""
        return self.phase >= Phase.ENDED

    @property
    def is_lost(self) -> bool:
        """Whether Celery failed to store the result."""
        return self.phase is Phase.LOST

    @property
    def followers_outcome(self) -> Outcome:
        """The outcome of abort requests for the tasks that do not run."""
        return "aborted" if self.outcome == "aborted" else "too_late"

    def apply_poll(self, row: TaskRow | None) -> None:
        """Take over what a poll found; *row* is None if there is no abort request."""
        if row is not None:
            self.stored_state = row.state
            if row.request is not None and self._is_for_this_run(row.request):
                self.abort(row.request)
        self._is_polled = True
        self.first_poll_done.set()

    def mark_watched(self) -> None:
        """Note that the supervisor watches the run."""
        if self.phase is Phase.CREATED:
            self.phase = Phase.CHECKING

    def enter_body(self) -> None:
        """Note that the start check is passed, and the task's own code runs."""
        self.phase = Phase.IN_BODY

    def leave_body(self, *, is_exiting: bool = False) -> None:
        """Note that the body is over. If its process is being killed, wait for that.

        Gives up after ``timing.kill_wait`` seconds. *is_exiting*: SystemExit has left the
        body. That is the kill, or ends the process as well.
        """
        with self.lock:
            # A signal may end the start check before the supervisor watches the run.
            if self.phase is not Phase.CREATED:
                self.phase = Phase.OUT_OF_BODY
            given_up = self._kill_given_up
        if given_up is not None and not is_exiting:
            _wait_for_kill(given_up, self.supervisor.timing.kill_wait)

    def mark_honoured(self, *, has_result: bool = False) -> None:
        """Note that TaskAborted left the body, and is stored unless the task *has_result*."""
        self.mark_seen()
        self.has_result = has_result
        self.ending = "honoured"

    def mark_replaced(self) -> None:
        """Note that the id goes on in another task, so this run does not end it."""
        self.ending = "replaced"

    def mark_ended(self, state: str | None) -> None:
        """Note that Celery is done with the run, and has recorded *state*."""
        self._end(state, Phase.ENDED)

    def mark_lost(self) -> None:
        """Note that Celery failed to store how the run ended."""
        self._end(states.FAILURE, Phase.LOST)

    def mark_unkillable(self) -> None:
        """Note that the grace is over, but that no process can be killed."""
        self._unseen_outcome = "unkillable"

    def claim_for_kill(self) -> bool:
        """Return whether the process may be killed for this run: its body is not over.

        If so, the body waits at its end. Otherwise SIGTERM could hit the next task, or
        Celery's result write.
        """
        with self.lock:
            is_in_body = self.phase is Phase.IN_BODY
            if is_in_body and self._kill_given_up is None:
                self._kill_given_up = new_event()
            return is_in_body

    def release(self) -> None:
        """Let the body end: the process is not killed after all."""
        with self.lock:
            given_up, self._kill_given_up = self._kill_given_up, None
        if given_up is not None:
            given_up.set()

    def outcome_beside(self, stored_state: str | None) -> Outcome | None:
        """Return the outcome of a run that has ended, with what is stored after that.

        A task that Celery stores no result of may have stored one itself.
        """
        if self.ended_without_result and stored_state in RESULT_STATES:
            return self._outcome_of(stored_state)
        return self.outcome

    def _on_seen(self) -> None:
        self.seen_at = time.monotonic()
        self.supervisor.report_seen(self)

    def _is_for_this_run(self, request: AbortRequest) -> bool:
        if request.is_pending:
            return True
        if self._is_polled:
            # Settled by another run of the same id: a duplicate delivery.
            return request.requested_at != self._settled_before
        # Settled before this run began: another run of the same publication may have
        # ended by it, or it is for an older publication of the same id.
        self._settled_before = request.requested_at
        if self._published_at is None:
            return self._is_redelivered
        skew = self.supervisor.timing.clock_skew
        return (self._is_redelivered or self._is_retry) and (
            request.requested_at.timestamp() >= self._published_at - skew
        )

    def _end(self, state: str | None, phase: Phase) -> None:
        self.ended_at = time.monotonic()
        is_ignored = state == states.IGNORED and self.ending is None
        self.ended_without_result = is_ignored or phase is Phase.LOST
        self.outcome = self._outcome_of(state)
        # Last: once the run has ended, the agent settles its request by the outcome.
        self.phase = phase

    def _outcome_of(self, state: str | None) -> Outcome | None:
        if state == states.IGNORED and self._is_stopped():
            # If there was a result, another run has stored it, but had not settled the
            # request.
            was_finished = self.has_result or self.stored_state in RESULT_STATES
            return "too_late" if was_finished else "aborted"
        if state == states.IGNORED and self.ending is None:
            return self._unseen_outcome
        if state == states.SUCCESS:
            return "returned" if self.seen else self._unseen_outcome
        if state == states.FAILURE:
            return "failed" if self.seen else self._unseen_outcome
        return None

    def _is_stopped(self) -> bool:
        """Return whether a run that ended by Ignore ended because of the abort."""
        return self.ending == "honoured" or (self.seen and self.ending is None)


def _wait_for_kill(given_up: Event, timeout: float) -> None:
    """Wait until the kill is given up; the kill itself ends the process.

    A soft time limit comes too late for the body. If it ended the wait, its FAILURE
    would replace the REVOKED that the main process stores.
    """
    deadline = time.monotonic() + timeout
    while (remaining := deadline - time.monotonic()) > 0:
        with suppress(SoftTimeLimitExceeded):
            given_up.wait(remaining)
            return
