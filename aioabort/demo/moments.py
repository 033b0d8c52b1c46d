"""When a run is aborted."""

import random
from enum import Enum

from aioabort.demo.ledger import Entry, until
from aioabort.demo.tasks import EVERY

#: Seconds until a task with an ETA begins.
COUNTDOWN = 1.0


class Moment(Enum):
    """A moment in the life of a run."""

    MIDWAY = "mid-way"
    BETWEEN = "between progress updates"
    STARTED = "just started"
    QUEUED = "queued"
    ETA = "on ETA"

    @property
    def countdown(self) -> float | None:
        """How long the task waits for its ETA, if it has one."""
        return COUNTDOWN if self is Moment.ETA else None

    async def arrive(self, entry: Entry, files: int) -> None:
        """Return when the run is at this moment: in its first half, or before it."""
        if self in {Moment.QUEUED, Moment.ETA}:
            return
        reached = self._files_hashed(files)
        await until(lambda: entry.started and entry.hashed >= reached)

    def _files_hashed(self, files: int) -> int:
        half = files // 2
        if self is Moment.STARTED:
            return 0
        if self is Moment.MIDWAY:
            return random.randint(half // 2, half)  # noqa: S311
        update = random.randint(0, half // EVERY) * EVERY  # noqa: S311
        return min(update + EVERY // 2, half)
