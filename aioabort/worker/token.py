"""The token: all that a running task sees of a request to stop it."""

from contextvars import ContextVar
from typing import Final

from aioabort.records import AbortRequest


class AbortToken:
    """Whether a task was asked to stop; safe to hand to other threads.

    ``aborted`` is a plain attribute, so the tightest loop may read it; once True it
    stays True, and ``request`` tells who asked, why and when. Reading ``aborted``
    alone does not tell the requester that the task has noticed: ``is_aborted()`` and
    ``raise_if_aborted()`` do.
    """

    __slots__ = ("aborted", "request", "seen", "task_id")

    def __init__(self, task_id: str = "") -> None:
        self.task_id: str = task_id
        self.aborted: bool = False
        self.seen: bool = False
        self.request: AbortRequest | None = None

    def abort(self, request: AbortRequest) -> None:
        """Ask the holder of this token to stop; the first request stays."""
        if not self.aborted:
            self.request = request
            self.aborted = True

    def is_aborted(self) -> bool:
        """Whether the task is to stop; the first True is recorded as seen."""
        if self.aborted and not self.seen:
            self.seen = True
            self.on_seen()
        return self.aborted

    def raise_if_aborted(self) -> None:
        """Raise TaskAborted if the task is to stop; it ends the task as REVOKED."""
        if self.is_aborted() and self.request is not None:
            raise self.request.error()

    def on_seen(self) -> None:
        """Do nothing: a token of no worker has nobody to tell."""


#: The token outside of any task. Its ``aborted`` sends a check down its slow path.
OUTSIDE: Final = AbortToken()
OUTSIDE.aborted = True

current: ContextVar[AbortToken] = ContextVar("aioabort_token", default=OUTSIDE)


def current_token() -> AbortToken:
    """Return the running task's token; outside of a task, one that is never aborted."""
    token = current.get()
    return AbortToken() if token is OUTSIDE else token
