"""How a test waits: until a condition holds, and for BOUND seconds at most."""

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

#: Seconds that anything a test waits for may take on a busy machine.
BOUND = 30.0

#: Seconds between two checks of a condition.
PAUSE = 0.005

#: A poll interval, in seconds, so long that a test which needs the poll times out.
NEVER_POLLED = 3_600.0

T = TypeVar("T")


async def until(condition: Callable[[], Awaitable[T] | T], bound: float = BOUND) -> T:
    """Return the first true value of *condition*, which may be a coroutine function.

    Raise TimeoutError if there is none within *bound* seconds.
    """
    with anyio.move_on_after(bound):
        while True:
            value = condition()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            await anyio.sleep(PAUSE)
    raise _late(condition, bound)


def block_until(condition: Callable[[], T], bound: float = BOUND) -> T:
    """Block the thread until *condition* has a true value, and return that.

    Raise TimeoutError if there is none within *bound* seconds.
    """
    deadline = time.monotonic() + bound
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise _late(condition, bound)
        time.sleep(PAUSE)
    return value


def _late(condition: Callable[[], object], bound: float) -> TimeoutError:
    return TimeoutError(f"not true within {bound:g} s: {condition}")
