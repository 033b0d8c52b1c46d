"""How long an event loop does nothing else."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

#: Seconds between two looks at the clock.
TICK = 0.002


@dataclass
class Stalls:
    """The longest delays of a tick, in seconds."""

    #: By the clock; what else runs on the machine counts, too.
    longest: float = 0.0
    #: In which the loop's thread used the processor itself.
    busiest: float = 0.0


@asynccontextmanager
async def stalls() -> AsyncGenerator[Stalls]:
    """Watch the running loop for the time of the block."""
    seen = Stalls()

    async def watch() -> None:
        while True:
            due, used = time.perf_counter() + TICK, time.thread_time()
            await asyncio.sleep(TICK)
            seen.longest = max(seen.longest, time.perf_counter() - due)
            seen.busiest = max(seen.busiest, time.thread_time() - used)

    task = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.wait([task])
