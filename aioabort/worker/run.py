"""One run of a task in this process: its token, and what is remembered to settle it."""

import os
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Final, Protocol

from celery import states
from celery.app.task import Context

from aioabort import threads
from aioabort.records import AbortRequest, Outcome, TaskRow
from aioabort.worker.token import AbortToken, current

#: Seconds that a body waits at its end when its process is to be ended.
LONGEST_KILL = 15.0


class Supervisor(Protocol):
    """What sets the tokens of running tasks, and hears from them."""

    def begin(self, run: "Run") -> None:
        """Watch *run*, and ask whether it is to stop; returns at once."""

    def wait_for_look(self, run: "Run") -> None:
        """Return when it is known whether *run* was asked to stop."""

    def look_again(self, run: "Run") -> TaskRow | None:
        """Refresh the state of *run* by what is returned, if PostgreSQL can be asked."""

    def saw(self, run: "Run") -> None:
        """Record that the task noticed its request."""

    def end(self, run: "Run") -> None:
        """Stop watching *run* and report its end."""

    def end_now(self, run: "Run") -> None:
        """Do so before this returns, if PostgreSQL can be asked."""


class Run(AbortToken):
    """A token that a worker holds, from before the body until after the result."""

    __slots__ = (
        "_observed",
        "_requested_before",
        "_spared",
        "ended_at",
        "followers",
        "honoured",
        "in_body",
        "is_announced",
        "is_killable",
        "is_lost",
        "is_started",
        "is_unkillable",
        "is_watched",
        "looked",
        "node",
        "outcome",
        "outer",
        "redelivered",
        "replaced",
        "seen_at",
        "state",
        "supervisor",
    )

    def __init__(self, request: Context, supervisor: Supervisor) -> None:
        super().__init__(request.id or "")
        self.supervisor: Final = supervisor
        self.node: Final = f"{request.hostname} pid {os.getpid()}"
        self.redelivered: Final = bool((request.delivery_info or {}).get("redelivered"))
        #: Set when the first look is over, or when PostgreSQL could not be asked.
        self.looked: Final = threads.event()
        #: The token of the task that this one is called from, if any.
        self.outer: Final = current.get()
        #: The supervisor was told to watch it.
        self.is_watched: bool = False
        #: The result backend has told clients of its end.
        self.is_announced: bool = False
        #: The start check is made.
        self.is_started: bool = False
        #: The state of Celery's row at the latest look.
        self.state: str | None = None
        #: Within the innermost wrapper, which turns TaskAborted into the task's end.
        self.in_body: bool = False
        #: The body runs: until it is over, its process may be ended.
        self.is_killable: bool = False
        #: Its grace is over, but nobody can end its process.
        self.is_unkillable: bool = False
        #: TaskAborted left the body, and its end is stored.
        self.honoured: bool = False
        #: Celery could not store how it ended.
        self.is_lost: bool = False
        #: The ids of what was to come after it, and has ended with it.
        self.followers: Iterable[str] = ()
        #: The task handed its id over to another one by ``replace()``.
        self.replaced: bool = False
        self.seen_at: float = 0.0
        self.ended_at: float = 0.0
        self.outcome: Outcome | None = None
        self._observed = False
        self._requested_before: datetime | None = None
        self._spared: threads.Event | None = None

    @property
    def has_ended(self) -> bool:
        """Whether Celery is done with the run."""
        return self.ended_at > 0

    def on_seen(self) -> None:
        """Have it recorded that the task noticed."""
        self.seen_at = time.monotonic()
        self.supervisor.saw(self)

    def observe(self, row: TaskRow | None) -> None:
        """Take in what a look at PostgreSQL found; *row* is None for no request."""
        if row is not None:
            self.state = row.state
            if row.request is not None and self._is_meant_by(row.request):
                self.abort(row.request)
        self._observed = True
        self.looked.set()

    def _is_meant_by(self, request: AbortRequest) -> bool:
        if request.is_pending:
            return True
        if self._observed:
            # Settled by another run of the same id: a duplicate delivery.
            return request.requested_at != self._requested_before
        # Settled before this run began: it stops a redelivery of the run that it
        # ended, but not a fresh publication of the same id.
        self._requested_before = request.requested_at
        return self.redelivered

    def condemn(self) -> bool:
        """Whether the process may be ended for this run: its body is not over.

        The body waits at its end then, for a while. Else the signal would hit what
        comes after it: the next task, or Celery, which stores what came of this one.
        """
        with self.lock:
            if self.is_killable and self._spared is None:
                self._spared = threads.event()
            return self.is_killable

    def spare(self) -> None:
        """Let the process go on: it is not ended for this run."""
        with self.lock:
            spared, self._spared = self._spared, None
        if spared is not None:
            spared.set()

    def leave_body(self) -> None:
        """Note that the body is over, unless the process is being ended for it."""
        with self.lock:
            self.is_killable = False
            spared = self._spared
        if spared is not None:
            spared.wait(LONGEST_KILL)

    def end(self, state: str | None) -> None:
        """Note that Celery is done with the run; *state* is what it recorded."""
        self.ended_at = time.monotonic()
        self.outcome = self._outcome(state)

    def _outcome(self, state: str | None) -> Outcome | None:
        """Return what became of a request, or None when the task has not ended yet."""
        stopped = self.honoured or (self.seen and not self.replaced)
        if state == states.IGNORED and stopped:
            # A redelivery was stopped, of a run that had ended without settling it.
            was_finished = self.state in {states.SUCCESS, states.FAILURE}
            return "too_late" if was_finished else "aborted"
        unseen: Outcome = "unkillable" if self.is_unkillable else "too_late"
        if state == states.SUCCESS:
            return "returned" if self.seen else unseen
        if state == states.FAILURE:
            return "failed" if self.seen else unseen
        return None
