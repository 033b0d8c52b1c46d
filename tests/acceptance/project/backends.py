"""Plain tasks, and one of celery.contrib.abortable, for the tests of the result backend."""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from celery import Task
from celery.contrib.abortable import AbortableTask as CelerysTask
from marks import note, until, wait_for


def define(task: Callable[..., Any]) -> SimpleNamespace:
    """Define the tasks by *task*, the decorator of an app."""

    @task(base=Task)
    def add(one: int, other: int) -> int:
        """Add two numbers."""
        return one + other

    @task(base=Task)
    def total(numbers: list[int]) -> int:
        """Add numbers."""
        return sum(numbers)

    @task(base=Task)
    def fail(reason: str) -> None:
        """Fail."""
        raise ValueError(reason)

    @task(base=Task)
    def die() -> None:
        """End the process."""
        os._exit(1)

    @task(bind=True, base=CelerysTask)
    def abortable(self: CelerysTask, place: str) -> str:
        """Report progress after the abort, and stop when it is seen all the same."""
        note(place, "body")
        wait_for(place, "report")
        self.update_state(state="PROGRESS", meta={"at": 1})
        until(self.is_aborted)
        return "stopped"

    return SimpleNamespace(
        add=add, total=total, fail=fail, die=die, abortable=abortable
    )
