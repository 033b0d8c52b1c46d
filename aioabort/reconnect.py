"""Going on after PostgreSQL was away: try again, later and later, and say so once."""

import logging
import random
from collections.abc import Awaitable, Callable
from copy import copy
from time import monotonic
from typing import Never

from anyio import sleep

from aioabort import telemetry
from aioabort.exceptions import StoreError

FIRST_DELAY = 0.1

logger: logging.Logger = logging.getLogger(__name__)


class Connectivity:
    """Whether PostgreSQL answers; one warning an outage, one line when it is over."""

    def __init__(self, user: str, longest_delay: float) -> None:
        self.server: str = "PostgreSQL"
        self.trouble: StoreError | None = None
        #: The latest trouble, also when it is over, and when it was, by time.monotonic.
        #: As text: the error itself would keep all alive that it was raised through.
        self.last_error: str | None = None
        self.last_error_at: float = 0.0
        self._user = user
        self._longest_delay = max(FIRST_DELAY, longest_delay)
        self._delay = FIRST_DELAY

    def recovered(self) -> None:
        """Note that statements succeed."""
        if self.trouble is not None:
            logger.info("%s: %s answers again", self._user, self.server)
        self.trouble = None
        self._delay = FIRST_DELAY

    def lost(self, error: StoreError) -> None:
        """Note that a statement or the connection failed."""
        if self.trouble is None:
            logger.warning("%s: %s; trying again until it answers", self._user, error)
        self.trouble = error
        self.last_error = str(error)
        self.last_error_at = monotonic()
        telemetry.reconnecting(self._user)

    def raise_trouble(self) -> None:
        """Raise the trouble, if there is any."""
        if self.trouble is not None:
            raise own(self.trouble)

    def next_delay(self) -> float:
        """Return how long to wait before the next try: full jitter, doubling.

        At most the longest delay, so that it bounds how late a recovery is noticed.
        """
        delay = random.uniform(0, self._delay)  # noqa: S311
        self._delay = min(self._delay * 2, self._longest_delay)
        return delay


def own(error: StoreError) -> StoreError:
    """Return *error* for one of those whom it concerns.

    Raised by each of them, one error would get the tracebacks of them all.
    """
    copied = copy(error)
    copied.__cause__ = error.__cause__
    return copied


async def keep_running(
    period: Callable[[], Awaitable[object]],
    connectivity: Connectivity,
    on_lost: Callable[[], None] = lambda: None,
) -> Never:
    """Run *period* for ever: again after each StoreError, and only after those.

    *period* says when it works by ``connectivity.recovered()``; *on_lost* is called
    after each failure, before the wait.
    """
    while True:
        try:
            await period()
        except* StoreError as errors:
            connectivity.lost(_first(errors))
            on_lost()
        except* Exception as errors:
            # A defect of ours must not end the watching: that would lose aborts.
            logger.exception("Unexpected; trying again")
            connectivity.lost(StoreError(f"unexpected: {errors.exceptions[0]!r}"))
            on_lost()
        await sleep(connectivity.next_delay())


def _first(errors: BaseExceptionGroup[StoreError]) -> StoreError:
    """Return one error of a group that may be nested."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
