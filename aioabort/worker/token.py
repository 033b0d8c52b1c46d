"""The abort token of a task, and how code finds the token of the task that runs it."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple

from aioabort.concurrency.gevent import is_gevent_patched
from aioabort.concurrency.loop_thread import new_event
from aioabort.models import AbortRequest
from aioabort.timing import check_timeout


class AbortToken:
    """Tells whether a task was asked to stop; may be passed to other threads.

    ``task_id`` is the id of the task. ``aborted`` is a plain attribute, for the tightest
    loop: once True, it stays True, and ``request`` says who asked, why and when. To read
    ``aborted`` does not record that the task has seen the abort; every method does.

    The token of code that no worker runs is never aborted.
    """

    __slots__ = ("aborted", "request", "task_id")

    def __init__(self, task_id: str = "") -> None:
        self.task_id: str = task_id
        self.aborted: bool = False
        self.request: AbortRequest | None = None

    def is_aborted(self) -> bool:
        """Return whether the task was asked to stop; the first True records it as seen."""
        return self.aborted

    def raise_if_aborted(self) -> None:
        """Raise TaskAborted if the task was asked to stop.

        If the task does not catch it, the task ends as REVOKED.
        """
        if self.is_aborted() and self.request is not None:
            raise self.request.error()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until the abort, for *timeout* seconds at most; return ``is_aborted()``.

        Without a timeout, only an abort ends the sleep. Raises InvalidRequest for a
        timeout that is no number.
        """
        new_event().wait(check_timeout(timeout))
        return self.is_aborted()

    @contextmanager
    def on_abort(self, callback: Callable[[], object]) -> Generator[None]:
        """Call *callback* once if the task is aborted before the block ends.

        During the block, the abort calls it in a thread of its own. If the task is
        already aborted, the callback is called at once, in this thread. An error that it
        raises is logged. The block does not end while the callback runs, so the callback
        cannot affect what comes after the block.
        """
        del callback  # only a worker aborts a token
        yield

    @contextmanager
    def shield(self) -> Generator[None]:
        """Delay an abort until the block ends, for all users of this token.

        An abort that came before the block stays in force. Blocks may be nested.
        """
        yield


#: Stands for "no task". The fast path of ``AbortableTask.is_aborted()`` reads one flag of
#: the current token and returns at once if it is False. OUTSIDE needs the slow path: a
#: thread without context may still belong to a task. So its flag is True, although
#: nothing is aborted, and OUTSIDE is never given to a caller.
OUTSIDE: Final = AbortToken()
OUTSIDE.aborted = True

#: The token of the task in this context.
current: ContextVar[AbortToken] = ContextVar("aioabort_token", default=OUTSIDE)


class ExposedToken(NamedTuple):
    """The token of the one task that a process runs, in its main thread."""

    token: AbortToken
    #: The threads that were there before the task, so the task has not started them.
    older_threads: frozenset[threading.Thread]


_exposed: ExposedToken | None = None


def expose_to_threads(token: AbortToken) -> None:
    """Let threads without context that a task starts find its *token*, until OUTSIDE is set.

    Only from the main thread: in other threads tasks run at the same time, and a thread
    without context could belong to any of them.
    """
    global _exposed  # noqa: PLW0603
    if is_gevent_patched() or threading.current_thread() is not threading.main_thread():
        return
    if token is OUTSIDE:
        _exposed = None
    else:
        _exposed = ExposedToken(token, frozenset(threading.enumerate()))


def find_token() -> AbortToken:
    """Return the token of the task that this thread belongs to, or OUTSIDE."""
    token, exposed = current.get(), _exposed
    if token is not OUTSIDE or exposed is None:
        return token
    is_older = threading.current_thread() in exposed.older_threads
    return OUTSIDE if is_older else exposed.token


def current_token() -> AbortToken:
    """Return the running task's token; outside of a task, one that is never aborted.

    Coroutines and ``asyncio.to_thread()`` inherit the context of the task, and find its
    token there. A thread that the task starts by itself has no context: it finds the
    token in prefork and solo workers only. In other workers, pass the token to it.
    """
    token = find_token()
    return AbortToken() if token is OUTSIDE else token
