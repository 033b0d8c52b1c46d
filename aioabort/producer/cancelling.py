"""A task whose result nobody awaits any more is asked to stop."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from anyio import CancelScope, move_on_after

from aioabort.exceptions import AioabortError

#: Seconds that a cancelled wait may go on for, to have the task asked.
PATIENCE: Final = 5.0

#: What the task is told unless the user says otherwise.
REASON: Final = "the wait for its result was cancelled"

logger: logging.Logger = logging.getLogger(__name__)

#: asyncio itself holds its tasks by weak references only.
_asking: Final[set["asyncio.Task[None]"]] = set()


@asynccontextmanager
async def aborting_on_cancel(
    abort: Callable[[], Awaitable[object]],
) -> AsyncGenerator[None]:
    """Call *abort* if the block is cancelled, and go on with the cancellation then."""
    try:
        yield
    except asyncio.CancelledError:
        asking = asyncio.get_running_loop().create_task(_ask(abort))
        _asking.add(asking)
        asking.add_done_callback(_asking.discard)
        # A cancel scope would cancel again and again. Whoever cancels a second time
        # by other means need not wait; the task is asked all the same.
        with CancelScope(shield=True):
            await asyncio.wait([asking])
        raise


async def _ask(abort: Callable[[], Awaitable[object]]) -> None:
    with move_on_after(PATIENCE) as scope:
        try:
            await abort()
        except AioabortError as error:
            logger.warning("A cancelled wait could not abort its task: %s", error)
    if scope.cancelled_caught:
        logger.warning(
            "A cancelled wait could not abort its task within %g s", PATIENCE
        )
