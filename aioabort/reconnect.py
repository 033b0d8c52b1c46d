"""Trying again after a failure: delays, log lines, and the loop around the work."""

import logging
import random
from collections.abc import Awaitable, Callable
from copy import copy
from time import monotonic
from typing import Never

from anyio import sleep

from aioabort.exceptions import StoreBusy, StoreError, StoreUnavailable
from aioabort.telemetry import instruments

FIRST_DELAY = 0.1

#: The errors of a database driver (PEP 249) that a later try raises, too. Each driver and
#: SQLAlchemy have classes of these names.
_REFUSALS = frozenset({"DataError", "NotSupportedError", "ProgrammingError"})

logger: logging.Logger = logging.getLogger(__name__)


def may_pass(error: Exception) -> bool:
    """Return whether a later try may succeed, as far as the class of *error* tells.

    It may after an outage, but not after a bug or a refusal. Libraries derive the errors
    of an outage from Exception or OSError; any other error of Python's own is a bug.
    """
    if isinstance(error, StoreError):
        return isinstance(error, StoreUnavailable)
    classes = type(error).__mro__
    if not _REFUSALS.isdisjoint(cls.__name__ for cls in classes):
        return False
    own = next(cls for cls in classes if cls.__module__ == "builtins")
    return own is Exception or issubclass(own, OSError | EOFError)


class Backoff:
    """Delays in seconds: each is twice the previous one, up to *longest*.

    With *jitter*, a delay is a random part of that, so that many processes do not try
    again at the same moment.
    """

    def __init__(self, first: float, longest: float, *, jitter: bool = False) -> None:
        self._first = min(first, longest)
        self._longest = longest
        self._jitter = jitter
        self._next = self._first
        #: The number of delays since the start or the latest ``reset()``.
        self.tries: int = 0

    def next_delay(self) -> float:
        """Return the seconds to wait before the next try."""
        delay = self._next
        self.tries += 1
        self._next = min(delay * 2, self._longest)
        return random.uniform(0, delay) if self._jitter else delay  # noqa: S311

    def reset(self) -> None:
        """Start again with the first delay."""
        self._next = self._first
        self.tries = 0


class Connectivity:
    """Whether PostgreSQL answers; logs the beginning and the end of each outage."""

    def __init__(self, user: str, longest_delay: float) -> None:
        """*user* names the part of aioabort that connects, for log lines.

        The end of an outage is noticed at most *longest_delay* seconds late.
        """
        self.server: str = "PostgreSQL"
        self.trouble: StoreError | None = None
        #: The latest error, also after the outage. As text, because the error itself
        #: keeps a reference to each frame that it passed.
        self.last_error: str | None = None
        #: When it occurred, by time.monotonic.
        self.last_error_at: float = 0.0
        self._user = user
        longest = max(FIRST_DELAY, longest_delay)
        self._backoff = Backoff(FIRST_DELAY, longest, jitter=True)

    def recovered(self) -> None:
        """Record that statements succeed."""
        if self.trouble is not None:
            logger.info("%s: %s answers again", self._user, self.server)
        self.trouble = None
        self._backoff.reset()

    def lost(self, error: StoreError) -> None:
        """Record that a statement or the connection failed."""
        if self.trouble is None:
            logger.warning("%s: %s; trying again until it answers", self._user, error)
        self.trouble = error
        self.last_error = str(error)
        self.last_error_at = monotonic()
        if not isinstance(error, StoreBusy):
            instruments().reconnecting(self._user)

    def raise_trouble(self) -> None:
        """Raise the current trouble, if there is any."""
        if self.trouble is not None:
            raise copy_for_waiter(self.trouble)

    def next_delay(self) -> float:
        """Return the seconds to wait before the next try."""
        return self._backoff.next_delay()


def copy_for_waiter(error: StoreError) -> StoreError:
    """Return a copy of *error* for one waiter.

    If many tasks raised one instance, it would collect all their tracebacks.
    """
    copied = copy(error)
    copied.__cause__ = error.__cause__
    return copied


async def run_with_reconnect(
    work: Callable[[], Awaitable[object]],
    connectivity: Connectivity,
    on_lost: Callable[[], None] = lambda: None,
) -> Never:
    """Run *work*, and run it again after each error.

    *work* calls ``connectivity.recovered()`` when its connection works. *on_lost* is
    called after each error, before the delay.
    """
    while True:
        try:
            await work()
        except* StoreError as errors:
            connectivity.lost(_first(errors))
            on_lost()
        except* Exception as errors:
            # A bug of ours must not end the polling: aborts would be lost.
            logger.exception("Unexpected error; trying again")
            connectivity.lost(StoreError(f"unexpected: {errors.exceptions[0]!r}"))
            on_lost()
        await sleep(connectivity.next_delay())


def _first(errors: BaseExceptionGroup[StoreError]) -> StoreError:
    """Return one error of the group, whose members may be groups."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
