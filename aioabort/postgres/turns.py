"""Who may use a connection next."""

import asyncio
from collections import deque


class Turns:
    """A lock for which urgent callers come before all others, and each kind in order.

    Not thread-safe: all methods belong to one event loop.
    """

    def __init__(self) -> None:
        self._is_taken = False
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()

    async def acquire(self, *, is_urgent: bool) -> None:
        """Return when it is the caller's turn, which lasts until ``release()``."""
        if not self._is_taken:
            self._is_taken = True
            return
        turn = asyncio.get_running_loop().create_future()
        (self._urgent if is_urgent else self._others).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # The turn came together with the cancellation.
                self.release()
            raise

    def release(self) -> None:
        """End the turn."""
        for waiting in (self._urgent, self._others):
            while waiting:
                turn = waiting.popleft()
                if not turn.done():
                    turn.set_result(None)
                    return
        self._is_taken = False
