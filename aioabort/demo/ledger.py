"""What each run really did, recorded without Celery, PostgreSQL and aioabort.

The ledger is a file that the demo and the worker's processes map into memory: the task
writes its entry, and the demo reads it. Times are of the monotonic clock, which all
processes of a machine share; 0 means "never".
"""

import ctypes
import mmap
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import anyio

#: Seconds between two reads of an entry.
POLL_INTERVAL = 0.01


class Entry(ctypes.Structure):
    """One run, as its body recorded it."""

    #: The body began.
    started: float
    #: The latest check began.
    checked: float
    #: The body ended.
    stopped: float
    #: Files hashed so far.
    hashed: int
    #: A check returned True.
    aborted: bool

    _fields_ = (
        ("started", ctypes.c_double),
        ("checked", ctypes.c_double),
        ("stopped", ctypes.c_double),
        ("hashed", ctypes.c_int64),
        ("aborted", ctypes.c_bool),
    )


async def wait_for(condition: Callable[[], object]) -> None:
    """Poll until *condition* is true: a write to shared memory wakes no one."""
    while not condition():  # noqa: ASYNC110
        await anyio.sleep(POLL_INTERVAL)


def create_ledger(path: Path, entries: int) -> None:
    """Create an empty ledger."""
    path.touch()
    os.truncate(path, entries * ctypes.sizeof(Entry))


def entry_of(path: str, number: int) -> Entry:
    """Return an entry in memory that all processes share."""
    return Entry.from_buffer(_map(path), number * ctypes.sizeof(Entry))


@cache
def _map(path: str) -> mmap.mmap:
    with Path(path).open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)
