"""The token: all that a running task sees of a request to stop it."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, NamedTuple

from aioabort import threads
from aioabort.records import AbortRequest
from aioabort.worker.callbacks import Callbacks


class AbortToken:
    """Whether a task was asked to stop; safe to hand to other threads.

    ``aborted`` is a plain attribute, so the tightest loop may read it; once True it
    stays True, and ``request`` tells who asked, why and when. Reading ``aborted``
    alone does not tell the requester that the task has noticed; every method does.
    """

    __slots__ = (
        "_callbacks",
        "_held",
        "_raised_in",
        "_shields",
        "_stop",
        "_stop_is_held",
        "_wake",
        "aborted",
        "lock",
        "request",
        "seen",
        "task_id",
    )

    def __init__(self, task_id: str = "") -> None:
        self.task_id: str = task_id
        self.aborted: bool = False
        self.seen: bool = False
        self.request: AbortRequest | None = None
        # Entered again by a signal handler that interrupts a method of this class.
        self.lock: threads.RLock = threads.RLock()
        self._shields = 0
        self._held: AbortRequest | None = None
        self._wake: threads.Event | None = None
        self._callbacks: Callbacks | None = None
        self._stop: Callable[[], None] | None = None
        self._stop_is_held = False
        self._raised_in: tuple[int, ...] = ()

    def is_aborted(self) -> bool:
        """Whether the task is to stop; the first True is recorded as seen."""
        if self.aborted and not self.seen:
            self.seen = True
            self.on_seen()
        return self.aborted

    def raise_if_aborted(self) -> None:
        """Raise TaskAborted if the task is to stop; it ends the task as REVOKED."""
        if self.is_aborted() and self.request is not None:
            with self.lock:
                self._raised_in += (threading.get_ident(),)
            raise self.request.error()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep for *timeout* seconds, or until the abort; return whether it came.

        Without a timeout, until the abort only.
        """
        with self.lock:
            if self._wake is None:
                self._wake = threads.event()
            if self.aborted:
                self._wake.set()
        self._wake.wait(timeout)
        return self.is_aborted()

    @contextmanager
    def on_abort(self, callback: Callable[[], object]) -> Generator[None]:
        """Call *callback* once if the abort comes within the block, or came before.

        It is called in a thread of its own, or at once in this one if the abort was
        there before; what it raises is logged. The block does not end while the
        callback runs, so that it never hits what comes after.
        """
        with self.lock:
            if self._callbacks is None:
                self._callbacks = Callbacks()
            callbacks, is_due = self._callbacks, self.aborted
            call = callbacks.add(callback)
        if is_due:
            self.is_aborted()
            call.run()
        try:
            yield
        finally:
            callbacks.remove(call)

    @contextmanager
    def shield(self) -> Generator[None]:
        """Hold the abort back until the block ends, for this token's every holder.

        An abort that came before the block is not undone. Blocks may be nested.
        """
        with self.lock:
            self._shields += 1
        try:
            yield
        finally:
            with self.lock:
                self._shields -= 1
                held = None if self._shields else self._held
                stop = self._stop if self._stop_is_held and not self._shields else None
            if held is not None:
                self.abort(held)
            elif stop is not None:
                stop()

    def abort(self, request: AbortRequest) -> None:
        """Ask the holder of this token to stop; the first request stays."""
        with self.lock:
            if self.aborted:
                return
            if self._shields:
                self._held = self._held or request
                return
            self.request = request
            self.aborted = True
            if self._wake is not None:
                self._wake.set()
            callbacks, stop = self._callbacks, self._stop
        if callbacks is not None and callbacks.run_all():
            self.is_aborted()
        if stop is not None:
            stop()

    def stop_with(self, stop: Callable[[], None] | None) -> None:
        """Have *stop* called, once and without delay, by the abort; None for nothing."""
        with self.lock:
            self._stop = stop
            is_due = self.aborted
        if is_due and stop is not None:
            stop()

    def may_stop(self) -> bool:
        """Whether no shield is in the way; to be asked while ``lock`` is held.

        If one is, what was set by ``stop_with()`` is called when it ends: the abort
        had come before the shield, and its effect would come during it.
        """
        self._stop_is_held = self._shields > 0
        return not self._stop_is_held

    def has_raised_in(self, thread: int) -> bool:
        """Whether ``raise_if_aborted()`` has raised in *thread*.

        The body stops by itself then, and is not to be stopped while it cleans up.
        To be asked while ``lock`` is held.
        """
        return thread in self._raised_in

    def on_seen(self) -> None:
        """Do nothing: a token of no worker has nobody to tell."""


#: The token outside of any task. Its ``aborted`` sends a check down its slow path.
OUTSIDE: Final = AbortToken()
OUTSIDE.aborted = True

current: ContextVar[AbortToken] = ContextVar("aioabort_token", default=OUTSIDE)


class MainRun(NamedTuple):
    """The token of a process that runs one task at a time, in its main thread."""

    token: AbortToken
    #: Those that were there before the task: it has not started them.
    older_threads: frozenset[threading.Thread]


_main_run: MainRun | None = None


def lend(token: AbortToken) -> None:
    """Let the threads find *token* that its task starts, if they have no context.

    Until OUTSIDE is lent instead, and only from the main thread: elsewhere, tasks run
    at the same time, and nobody can tell which of them has started a thread.
    """
    global _main_run  # noqa: PLW0603
    if threads.are_green() or threading.current_thread() is not threading.main_thread():
        return
    if token is OUTSIDE:
        _main_run = None
    else:
        _main_run = MainRun(token, frozenset(threading.enumerate()))


def find_token() -> AbortToken:
    """Return the token of the task that this thread is of, or OUTSIDE."""
    token, main = current.get(), _main_run
    if token is not OUTSIDE or main is None:
        return token
    is_older = threading.current_thread() in main.older_threads
    return OUTSIDE if is_older else main.token


def current_token() -> AbortToken:
    """Return the running task's token; outside of a task, one that is never aborted.

    Coroutines and ``asyncio.to_thread()`` have the task's context, in which it is. A
    thread of one's own has none: it finds the task that has started it in prefork and
    solo workers only. In others, hand the token to it.
    """
    token = find_token()
    return AbortToken() if token is OUTSIDE else token
