"""What the worker does: the bodies of the tasks, the same for both libraries."""

import hashlib
import threading
import time
import timeit
from pathlib import Path
from typing import Any, Protocol

from aioabort.demo.ledger import Entry
from aioabort.demo.tree import first_files

#: Files between two reports of progress.
EVERY = 10

#: Rounds in which the cost of a check is measured.
ROUNDS = 20

#: Seconds after which a task stops to look whether it is aborted.
LONGEST_WATCH = 10.0


class Abortable(Protocol):
    """A task of either library."""

    def is_aborted(self) -> bool:
        """Whether the task is to stop."""
        ...

    def update_state(self, *, state: str, meta: dict[str, Any]) -> None:
        """Store a state of the task's own."""
        ...


def index(task: Abortable, entry: Entry, root: str, most: int, rest: float) -> str:
    """Hash the files below *root*, and rest after each for *rest* seconds.

    As both libraries document it: a check before each file, a report now and then.
    """
    entry.started = time.monotonic()
    files = first_files(Path(root), most)
    digest = hashlib.sha256()
    for file in files:
        entry.checked = time.monotonic()
        if task.is_aborted():
            entry.aborted = True
            break
        digest.update(_sha256(file))
        time.sleep(rest)
        entry.hashed += 1
        if entry.hashed % EVERY == 0:
            progress = {"hashed": entry.hashed, "of": len(files)}
            task.update_state(state="PROGRESS", meta=progress)
    entry.stopped = time.monotonic()
    return digest.hexdigest()


def weigh(task: Abortable, _: Entry, checks: int) -> tuple[float, float]:
    """Return the seconds that one check costs, and one ``Event.is_set()``."""
    names = {"task": task, "event": threading.Event()}
    check = timeit.Timer("task.is_aborted()", globals=names)
    is_set = timeit.Timer("event.is_set()", globals=names)
    # In turn, and the best of many, so that what else runs here does not count.
    times = [(check.timeit(checks), is_set.timeit(50_000)) for _ in range(ROUNDS)]
    return min(t for t, _ in times) / checks, min(t for _, t in times) / 50_000


def noop(_task: Abortable, _entry: Entry) -> None:
    """Do nothing: all that is left is the library's own work."""


def spin(task: Abortable, entry: Entry) -> None:
    """Compute until aborted, without ever giving the interpreter away."""
    entry.started = time.monotonic()
    deadline = entry.started + LONGEST_WATCH
    turns = 0
    while not (aborted := task.is_aborted()) and time.monotonic() < deadline:
        turns += 1
    entry.stopped = time.monotonic()
    entry.aborted = aborted


def doze(task: Abortable, entry: Entry) -> None:
    """Wait until aborted, as a task does that waits on I/O."""
    entry.started = time.monotonic()
    deadline = entry.started + LONGEST_WATCH
    while not (aborted := task.is_aborted()) and time.monotonic() < deadline:
        time.sleep(0.0005)
    entry.stopped = time.monotonic()
    entry.aborted = aborted


def nap(_task: Abortable, entry: Entry, seconds: float) -> None:
    """Take *seconds*; its entry is stopped when its result is committed."""
    entry.started = time.monotonic()
    time.sleep(seconds)


def _sha256(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError:
        return b""  # it went while we looked at others
