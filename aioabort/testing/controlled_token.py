"""A token that is aborted at the check that a test names."""

import signal
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Final

from celery.app.task import Context

from aioabort.models import AbortRequest
from aioabort.timing import Timing
from aioabort.worker.run import Phase, Run


class NullSupervisor:
    """The supervisor of a run that no worker runs: it does nothing."""

    def __init__(self) -> None:
        self.timing: Final = Timing()
        self.interrupt_signal: Final = signal.SIGURG

    def watch(self, run: Run) -> None:
        """Do nothing."""

    def wait_for_first_poll(self, run: Run) -> None:
        """Return at once."""

    def poll_again(self, run: Run) -> None:
        """Find nothing."""

    def report_seen(self, run: Run) -> None:
        """Do nothing."""

    def report_end(self, run: Run) -> None:
        """Do nothing."""

    def report_end_now(self, run: Run) -> None:
        """Do nothing."""


class ControlledToken(Run):
    """The token of a run without a worker. It counts the checks of the task."""

    __slots__ = ("_ask", "_checks_before_abort", "checks")

    def __init__(self, task_id: str) -> None:
        #: The checks until now; those after the first True are not counted.
        self.checks: int = 0
        self._checks_before_abort: int = 0
        self._ask: Callable[[], None] | None = None
        super().__init__(Context(id=task_id), NullSupervisor())

    @property
    def aborted(self) -> bool:
        """Whether the task was asked to stop; reading it is a check."""
        # The start check belongs to the worker.
        if self.request is None and self.phase is not Phase.CHECKING:
            self.checks += 1
            if self._ask is not None and self.checks > self._checks_before_abort:
                self._ask()
        return self.request is not None

    @aborted.setter
    def aborted(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, aborted: bool
    ) -> None:
        """Do nothing: ``request`` is set at the same time."""

    def ask(self, reason: str | None, requested_by: str | None) -> None:
        """Ask the task to stop, now."""
        self.abort(
            AbortRequest(
                task_id=self.task_id,
                requested_at=datetime.now(UTC),
                reason=reason,
                requested_by=requested_by,
            )
        )

    def ask_after(
        self, checks: int, reason: str | None, requested_by: str | None
    ) -> None:
        """Ask the task to stop at the check that follows the first *checks* ones."""
        self._checks_before_abort = checks
        self._ask = partial(self.ask, reason, requested_by)
