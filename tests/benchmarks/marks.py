"""What tasks tell of themselves, the moment it happens: a datagram each, to a board."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "AIOABORT_BENCH_BOARD"

#: Seconds that anything a task tells of may take.
BOUND = 30.0


def mark(key: str, what: str, more: str = "") -> None:
    """Tell the board, from a task in whatever process."""
    now = time.monotonic()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        text = f"{key} {what} {now!r} {os.getpid()} {more}"
        sender.sendto(text.encode(), os.environ[VARIABLE])


@dataclass(frozen=True)
class Mark:
    """What a task told; the moment is of the monotonic clock, which all share."""

    moment: float
    pid: int
    more: str


class Board(asyncio.DatagramProtocol):
    """Collects marks."""

    def __init__(self) -> None:
        self._marks: dict[tuple[str, str], asyncio.Future[Mark]] = {}

    async def marked(self, key: str, what: str) -> Mark:
        """Return the mark, when it comes; raise TimeoutError if it does not."""
        async with asyncio.timeout(BOUND):
            return await self._future(key, what)

    def datagram_received(self, data: bytes, _address: object) -> None:
        """Take in a mark."""
        key, what, moment, pid, more = data.decode().split(" ", 4)
        future = self._future(key, what)
        if not future.done():
            future.set_result(Mark(float(moment), int(pid), more))

    def _future(self, key: str, what: str) -> asyncio.Future[Mark]:
        loop = asyncio.get_running_loop()
        return self._marks.setdefault((key, what), loop.create_future())


@asynccontextmanager
async def open_board(folder: Path) -> AsyncGenerator[Board]:
    """Collect the marks of the processes that are started within the block."""
    path = folder / "board"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        receiver.setblocking(False)  # noqa: FBT003 - it takes nothing else
        receiver.bind(str(path))
        loop = asyncio.get_running_loop()
        transport, board = await loop.create_datagram_endpoint(Board, sock=receiver)
        os.environ[VARIABLE] = str(path)
        try:
            yield board
        finally:
            del os.environ[VARIABLE]
            transport.close()
            path.unlink()
