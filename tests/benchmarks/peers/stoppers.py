"""What a contender of the abort's delay offers."""

import asyncio
import os
import time
from dataclasses import dataclass
from typing import Any, Protocol

from ..marks import Board, Mark


class Stopper(Protocol):
    """Starts tasks of one kind and asks them to stop."""

    name: str
    pool: str
    body: str

    async def start(self, key: str) -> Any:
        """Have a task run whose marks have *key*; return what ``abort()`` wants."""
        ...

    async def abort(self, handle: Any) -> None:
        """Ask it to stop."""
        ...

    async def stopped(self, board: Board, key: str, started: Mark) -> float:
        """Return the moment at which the body stopped."""
        ...


@dataclass
class Named:
    """Of a stopper whose tasks tell that they stop."""

    name: str
    pool: str
    body: str

    async def stopped(self, board: Board, key: str, started: Mark) -> float:  # noqa: ARG002
        """Return the moment at which the body stopped."""
        return (await board.marked(key, "stopped")).moment


async def until_dead(pid: int) -> float:
    """Return the moment at which the process *pid* was gone."""
    loop = asyncio.get_running_loop()
    dead = loop.create_future()
    descriptor = os.pidfd_open(pid)
    try:
        loop.add_reader(
            descriptor, lambda: dead.done() or dead.set_result(time.monotonic())
        )
        return float(await asyncio.wait_for(dead, 30))
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
