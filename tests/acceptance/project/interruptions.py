"""Tasks that never look, and are interrupted: ``abort_mode="raise"``."""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from marks import note, until, wait_for

from aioabort import AbortableTask


def never() -> bool:
    """Be a condition that never holds."""
    return False


class Late(AbortableTask):
    """A base class that works after the body."""

    abstract = True

    def __call__(self, place: str) -> None:
        """Call the body, and go on."""
        super().__call__(place)
        note(place, "body")
        until(never)


def define(task: Callable[..., Any]) -> SimpleNamespace:
    """Return the tasks of this module for the app whose decorator *task* is."""
    interrupted = partial(task, abort_mode="raise")

    @interrupted
    def sleeping(place: str) -> None:
        """Wait in one call of C."""
        note(place, "body")
        try:
            time.sleep(60)
        finally:
            note(place, "cleaned")

    @interrupted(autoretry_for=(Exception,), default_retry_delay=0)
    def computing(place: str) -> None:
        """Run Python code."""
        note(place, "body")
        try:
            until(never)
        finally:
            note(place, "cleaned")

    @interrupted
    def catching(place: str) -> str:
        """Take the abort for an error like others."""
        note(place, "body")
        try:
            until(never)
        except Exception as error:  # noqa: BLE001 - as people write it
            note(place, "caught", error)
        return "kept"

    @interrupted(bind=True)
    def shielding(self: AbortableTask, place: str) -> None:
        """Be interrupted, but not within the shield."""
        with self.abort_token.shield():
            note(place, "body")
            wait_for(place, "end")
            note(place, "shield")
        until(never)
        note(place, "end of the body")

    @interrupted
    def brief(place: str, number: int) -> int:
        """End soon."""
        note(place, f"body-{number}")
        deadline = time.monotonic() + 0.02
        while time.monotonic() < deadline:
            pass
        return number

    return SimpleNamespace(
        sleeping=sleeping,
        computing=computing,
        catching=catching,
        shielding=shielding,
        brief=brief,
        **define_longer(interrupted),
    )


def define_longer(interrupted: Callable[..., Any]) -> dict[str, Any]:
    """Return the tasks that a first exception does not end."""

    @interrupted
    def logging_rows(place: str) -> None:
        """Spend the time in a library that swallows exceptions."""
        log = logging.getLogger("rows")
        log.propagate = False
        log.addHandler(logging.FileHandler(Path(place, "rows")))
        note(place, "body")
        until(lambda: log.warning("a row"))

    @interrupted
    def cleaning(place: str) -> None:
        """Take long to clean up, without a shield."""
        note(place, "body")
        try:
            until(never)
        finally:
            wait_for(place, "end")
            note(place, "cleaned")

    @interrupted(base=Late)
    def late(place: str) -> None:
        """End soon; then the class goes on."""

    @interrupted
    def subtask(place: str) -> None:
        """Be run eagerly."""
        note(place, "body")
        until(never)

    @interrupted
    def calling(place: str) -> None:
        """Run another task, and yet another one if that ends."""
        for _ in range(2):
            subtask.apply(args=(place,))

    return {
        "logging_rows": logging_rows,
        "cleaning": cleaning,
        "late": late,
        "calling": calling,
    }
