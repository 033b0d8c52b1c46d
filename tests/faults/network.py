"""A network to PostgreSQL for a process whose event loop must not carry it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

from tests.support.network import Network


class NetworkThread:
    """A Network that runs in a thread of its own, and is broken from any other one."""

    def __init__(self, dsn: str) -> None:
        self._network = Network(dsn)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.call(Network.mend)

    @property
    def dsn(self) -> str:
        """The address of the same database, through this network."""
        return self._network.dsn

    def call(self, act: Callable[[Network], Awaitable[None] | None]) -> None:
        """Call a method of the Network, and return when it is done."""

        async def call() -> None:
            if (done := act(self._network)) is not None:
                await done

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    def close(self) -> None:
        """Cut it for good, and end its thread."""
        self.call(Network.cut)
        asyncio.run_coroutine_threadsafe(_end_all_others(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _end_all_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    # Aborted connections are closed in the loop's next turn.
    await asyncio.sleep(0)
