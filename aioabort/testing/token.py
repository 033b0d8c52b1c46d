"""A token that is aborted when a test says so."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from celery.app.task import Context

from aioabort.records import AbortRequest
from aioabort.worker.run import Run
from aioabort.worker.token import AbortToken

#: Where AbortToken keeps its flag.
_FLAG: Final[Any] = vars(AbortToken)["aborted"]


class Nobody:
    """Supervises a run that no worker holds."""

    def begin(self, run: Run) -> None:
        """Look at nothing."""

    def wait_for_look(self, run: Run) -> None:
        """Return at once."""

    def look_again(self, run: Run) -> None:
        """Look at nothing."""

    def saw(self, run: Run) -> None:
        """Record nothing."""

    def end(self, run: Run) -> None:
        """Report nothing."""

    def end_now(self, run: Run) -> None:
        """Report nothing."""


class ControlledToken(Run):
    """The token of a run that no worker holds; it counts how often the task looks."""

    __slots__ = ("_ask", "_checks_in_vain", "checks")

    def __init__(self, task_id: str) -> None:
        #: The looks of the task at an abort, up to the one that found it.
        self.checks: int = 0
        self._checks_in_vain: int = 0
        self._ask: Callable[[], None] | None = None
        super().__init__(Context(id=task_id), Nobody())

    @property
    def aborted(self) -> bool:
        """Whether the task is to stop; to read it is to look."""
        # The token's own methods read it, too, but with their lock held.
        lock: Any = self.lock
        if not lock._is_owned():
            self._count()
        is_aborted: bool = _FLAG.__get__(self)
        return is_aborted

    @aborted.setter
    def aborted(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, aborted: bool
    ) -> None:
        _FLAG.__set__(self, aborted)

    def is_aborted(self) -> bool:
        """Whether the task is to stop; one look, however often the flag is read."""
        return self.aborted and super().is_aborted()

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
        """Ask the task to stop when it has looked so many times in vain."""
        self._checks_in_vain = checks
        self._ask = partial(self.ask, reason, requested_by)

    def _count(self) -> None:
        if _FLAG.__get__(self):
            return
        self.checks += 1
        if self._ask is not None and self.checks > self._checks_in_vain:
            self._ask()
