"""Outcomes that a child cannot record before it exits, handed to the main process.

A child that is recycled, or ends at a warm shutdown, cannot wait until PostgreSQL is
back. It writes what is left into a pipe that all children of the worker share.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final

from celery import signals

from aioabort.models import AbortRequest, Outcome

#: A write of so many bytes is not mixed with the writes of other processes, on Linux.
LONGEST_LINE = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class UnrecordedEnd:
    """A task that has ended with *outcome*, at a time of the monotonic clock.

    All processes of a machine share that clock. ``requested_at`` and ``seen_at`` are
    None if the child does not know of a request, or has no check to record.
    """

    task_id: str
    outcome: Outcome
    ended_at: float
    requested_at: str | None = None
    seen_at: float | None = None
    seen_by: str = ""

    @property
    def request(self) -> AbortRequest | None:
        """What identifies the abort request that the child knows of."""
        if self.requested_at is None:
            return None
        requested_at = datetime.fromisoformat(self.requested_at)
        return AbortRequest(task_id=self.task_id, requested_at=requested_at)


class Handover:
    """The pipe, which the main process opens before it forks the first child."""

    def __init__(self) -> None:
        self._owner: int | None = None
        self._reader: int = -1
        self._writer: int = -1
        self._read: bytes = b""

    def open(self, **_: object) -> None:
        """Open the pipe, if this process has not opened it before."""
        if self._owner != os.getpid():
            self._owner = os.getpid()
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._reader, False)
            os.set_blocking(self._writer, False)

    def write(self, ends: Iterable[UnrecordedEnd]) -> list[UnrecordedEnd]:
        """Hand *ends* to the main process; return those that it does not get.

        It gets none from itself, and none from a child that it has spawned.
        """
        if self._owner in {None, os.getpid()}:
            return list(ends)
        return [end for end in ends if not self._write(end)]

    def read(self) -> list[UnrecordedEnd]:
        """Return what the children have written since the last call."""
        if self._owner != os.getpid():
            return []
        while part := self._read_part():
            self._read += part
        *lines, self._read = self._read.split(b"\n")
        return [UnrecordedEnd(**json.loads(line)) for line in lines]

    def _write(self, end: UnrecordedEnd) -> bool:
        line = json.dumps(asdict(end)).encode() + b"\n"
        if len(line) > LONGEST_LINE:
            return False
        try:
            os.write(self._writer, line)
        except OSError:  # the pipe is full, or the main process is gone
            return False
        return True

    def _read_part(self) -> bytes:
        try:
            return os.read(self._reader, 65_536)
        except BlockingIOError:
            return b""


handover: Final = Handover()

# Sent before the pool starts. Without a worker there is no pipe.
signals.worker_init.connect(handover.open, weak=False)
