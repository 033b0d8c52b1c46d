"""How tasks and the test that sent them wait for each other: by files in a folder."""

import time
from collections.abc import Callable
from pathlib import Path

#: Seconds until a task gives up, later than the test that has sent it.
PATIENCE = 60.0
PAUSE = 0.002


def note(place: str, name: str, text: object = "") -> None:
    """Add a line to the mark *name*; a test waits for it, or counts the lines."""
    with Path(place, name).open("a") as mark:
        mark.write(f"{text}\n")


def until(condition: Callable[[], bool | None]) -> None:
    """Return when *condition* holds; raise TimeoutError if it does not in time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(PAUSE)


def wait_for(place: str, gate: str) -> None:
    """Return when the test has opened *gate*."""
    until(Path(place, gate).exists)
