"""What each run really did, independent of Celery, PostgreSQL and aioabort.

A file that the demo and the worker's processes have mapped: the task writes into its
entry, the demo looks at it. Moments are of the monotonic clock, which all processes of
a machine share; 0 stands for "never".
"""

import ctypes
import mmap
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import anyio

#: Seconds between two looks at an entry.
LOOK = 0.01


class Entry(ctypes.Structure):
    """One run, as its body saw it."""

    #: The body began.
    started: float
    #: The latest check began.
    checked: float
    #: The body is over.
    stopped: float
    #: How many files it has hashed.
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


async def until(is_so: Callable[[], object]) -> None:
    """Return when the ledger says so; nobody tells when an entry changes."""
    while not is_so():  # noqa: ASYNC110
        await anyio.sleep(LOOK)


def create_ledger(path: Path, entries: int) -> None:
    """Make an empty ledger."""
    path.touch()
    os.truncate(path, entries * ctypes.sizeof(Entry))


def entry_of(path: str, number: int) -> Entry:
    """Return an entry that every process sees change."""
    return Entry.from_buffer(_mapped(path), number * ctypes.sizeof(Entry))


@cache
def _mapped(path: str) -> mmap.mmap:
    with Path(path).open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)
