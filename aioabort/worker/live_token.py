"""The token of a running task, which a worker can abort."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from aioabort.concurrency.loop_thread import Event, RLock, new_event
from aioabort.models import AbortRequest
from aioabort.timing import check_timeout
from aioabort.worker.callbacks import Callbacks
from aioabort.worker.token import AbortToken


class LiveToken(AbortToken):
    """An AbortToken that ``abort()`` sets, from any thread.

    ``aborted`` and ``request`` are set together, under ``lock``. Checks of the task read
    ``aborted``; the code of this package reads ``request`` instead, so that only the
    task's own checks are counted by ``aioabort.testing``.
    """

    # Without these, type checkers infer narrower types from ``abort()``.
    aborted: bool
    request: AbortRequest | None

    __slots__ = (
        "_callbacks",
        "_is_stop_delayed",
        "_raised_in",
        "_shielded_request",
        "_shields",
        "_stop",
        "_wake",
        "lock",
        "seen",
    )

    def __init__(self, task_id: str = "") -> None:
        super().__init__(task_id)
        #: Whether the task has noticed the abort.
        self.seen: bool = False
        #: Reentrant: a signal handler that interrupts a method may call another one.
        self.lock: RLock = RLock()
        self._shields = 0
        self._shielded_request: AbortRequest | None = None
        self._wake: Event | None = None
        self._callbacks: Callbacks | None = None
        self._stop: Callable[[], None] | None = None
        self._is_stop_delayed = False
        self._raised_in: tuple[int, ...] = ()

    def is_aborted(self) -> bool:
        """Check, and report the first True."""
        if not self.aborted:
            return False
        self.mark_seen()
        return True

    def raise_if_aborted(self) -> None:
        """Raise TaskAborted, and remember in which thread: see ``has_raised_in()``."""
        if self.is_aborted():
            with self.lock:
                if not self.has_raised_in(thread := threading.get_ident()):
                    self._raised_in += (thread,)
            super().raise_if_aborted()

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep on an event that ``abort()`` sets."""
        timeout = check_timeout(timeout)
        with self.lock:
            if self._wake is None:
                self._wake = new_event()
            if self.request is not None:
                self._wake.set()
        self._wake.wait(timeout)
        return self.is_aborted()

    @contextmanager
    def on_abort(self, callback: Callable[[], object]) -> Generator[None]:
        """Add *callback* to those that ``abort()`` runs, until the block ends."""
        with self.lock:
            if self._callbacks is None:
                self._callbacks = Callbacks()
            callbacks, is_due = self._callbacks, self.request is not None
            added = callbacks.add(callback)
        if is_due:
            self.mark_seen()
            added.run()
        try:
            yield
        finally:
            callbacks.remove(added)

    @contextmanager
    def shield(self) -> Generator[None]:
        """Keep the abort, and what it would stop, until the outermost block ends."""
        with self.lock:
            self._shields += 1
        try:
            yield
        finally:
            with self.lock:
                self._shields -= 1
                request, stop = (None, None) if self._shields else self._take_delayed()
            if request is not None:
                self.abort(request)
            elif stop is not None:
                stop()

    def abort(self, request: AbortRequest) -> None:
        """Ask the task to stop, because of *request*; a later request changes nothing."""
        with self.lock:
            if self.request is not None:
                return
            if self._shields:
                self._shielded_request = self._shielded_request or request
                return
            self.request = request
            self.aborted = True
            if self._wake is not None:
                self._wake.set()
            callbacks, stop = self._callbacks, self._stop
        if callbacks is not None and callbacks.run_all():
            self.mark_seen()
        if stop is not None:
            stop()

    def mark_seen(self) -> None:
        """Note that the task notices the abort, if there is one."""
        if self.request is not None and not self.seen:
            self.seen = True
            self._on_seen()

    def stop_with(self, stop: Callable[[], None] | None) -> Callable[[], None] | None:
        """Let the abort call *stop*, or nothing; if it came already, call *stop* now.

        *stop* interrupts the body. It is called by the thread that aborts the token, and
        must not block. It asks ``may_stop()`` before it takes effect. Returns what the
        abort would have called before.
        """
        with self.lock:
            previous, self._stop = self._stop, stop
            is_due = self.request is not None
        if is_due and stop is not None:
            stop()
        return previous

    def is_stopped_by(self, stop: Callable[[], None] | None) -> bool:
        """Return whether *stop* is what the abort calls; None stands for nothing."""
        return self._stop == stop

    def may_stop(self) -> bool:
        """Return whether no shield protects the body; call it while holding ``lock``.

        An abort before the shield may take effect only now. If a shield is in the way,
        its end calls again what ``stop_with()`` has set.
        """
        self._is_stop_delayed = self._shields > 0
        return not self._is_stop_delayed

    def has_raised_in(self, thread: int) -> bool:
        """Return whether ``raise_if_aborted()`` has raised in *thread*.

        The body then ends by itself, and must not be interrupted while it cleans up.
        Call it while holding ``lock``.
        """
        return thread in self._raised_in

    def _take_delayed(self) -> tuple[AbortRequest | None, Callable[[], None] | None]:
        """Return what the shields have delayed; the next shield does not repeat it."""
        request, self._shielded_request = self._shielded_request, None
        stop = self._stop if self._is_stop_delayed else None
        self._is_stop_delayed = False
        return request, stop

    def _on_seen(self) -> None:
        """Do nothing: only a run has a worker that records it."""
