"""The task bodies that the worker runs, the same for both libraries."""

import hashlib
import os
import threading
import time
import timeit
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from aioabort import AbortableTask
from aioabort.demo import UnusableOption
from aioabort.demo.ledger import Entry

#: Files between two progress updates.
UPDATE_INTERVAL = 10

#: Rounds in which the cost of a check is measured.
ROUNDS = 20

#: Seconds after which a body ends that has not been aborted.
MAX_SECONDS = 10.0


class Abortable(Protocol):
    """What the bodies use of a task of either library."""

    def is_aborted(self) -> bool:
        """Whether the task is to stop."""
        ...

    def update_state(self, *, state: str, meta: dict[str, Any]) -> None:
        """Store a custom state."""
        ...


def index(task: Abortable, entry: Entry, root: str, most: int, rest: float) -> str:
    """Hash the files below *root*, and rest for *rest* seconds after each.

    As both libraries recommend: a check before each file, and progress updates.
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
        _rest(task, rest)
        entry.hashed += 1
        if entry.hashed % UPDATE_INTERVAL == 0:
            progress = {"hashed": entry.hashed, "of": len(files)}
            task.update_state(state="PROGRESS", meta=progress)
    entry.stopped = time.monotonic()
    return digest.hexdigest()


def _rest(task: Abortable, seconds: float) -> None:
    """Sleep; with aioabort an abort ends the sleep, so that the next check is soon."""
    if isinstance(task, AbortableTask):
        task.abort_token.wait(seconds)
    else:
        time.sleep(seconds)


def time_checks(task: Abortable, _: Entry, checks: int) -> tuple[float, float]:
    """Return the seconds that one check takes, and one ``Event.is_set()``."""
    names = {"task": task, "event": threading.Event()}
    check = timeit.Timer("task.is_aborted()", globals=names)
    is_set = timeit.Timer("event.is_set()", globals=names)
    # In turn, and the best of many rounds, so that other load does not count.
    times = [(check.timeit(checks), is_set.timeit(50_000)) for _ in range(ROUNDS)]
    return min(t for t, _ in times) / checks, min(t for _, t in times) / 50_000


def noop(_task: Abortable, _entry: Entry) -> None:
    """Do nothing, so that only the library's own work remains."""


def spin(task: Abortable, entry: Entry) -> None:
    """Check in a tight loop until aborted, without releasing the GIL."""
    entry.started = time.monotonic()
    deadline = entry.started + MAX_SECONDS
    turns = 0
    while not (aborted := task.is_aborted()) and time.monotonic() < deadline:
        turns += 1
    entry.stopped = time.monotonic()
    entry.aborted = aborted


def doze(task: Abortable, entry: Entry) -> None:
    """Sleep between checks until aborted, like a task that waits for I/O."""
    entry.started = time.monotonic()
    deadline = entry.started + MAX_SECONDS
    while not (aborted := task.is_aborted()) and time.monotonic() < deadline:
        time.sleep(0.0005)
    entry.stopped = time.monotonic()
    entry.aborted = aborted


def nap(_task: Abortable, entry: Entry, seconds: float) -> None:
    """Sleep; ``entry.stopped`` is set when Celery has committed the result."""
    entry.started = time.monotonic()
    time.sleep(seconds)


def first_files(root: Path, most: int) -> list[Path]:
    """Return the first files below *root*, always in the same order."""
    return list(islice(_walk(root), most))


def checked_files(root: Path, most: int) -> list[Path]:
    """Return ``first_files()``, or raise UnusableOption if there are none."""
    if not root.is_dir():
        raise UnusableOption(f"--path: {root} is not a directory")
    if not (files := first_files(root, most)):
        raise UnusableOption(f"--path: {root} has no files that can be read")
    return files


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            # Only regular files: reading a named pipe, for example, would never end.
            if path.is_file() and os.access(path, os.R_OK):
                yield path


def _sha256(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").digest()
    except OSError:
        return b""  # deleted since the directory was listed
