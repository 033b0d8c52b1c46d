"""Runs of the index task, each aborted at some moment, and whether it stopped."""

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import cycle
from typing import Literal

import anyio

from aioabort.demo import DemoError
from aioabort.demo.ledger import Entry, wait_for
from aioabort.demo.libraries import Library
from aioabort.demo.tasks import UPDATE_INTERVAL

#: Seconds until a task with an ETA begins.
COUNTDOWN = 1.0

#: Seconds within which every run must end.
RUN_TIMEOUT = 120.0

#: Published runs per process of the worker; those that do not run yet are queued or
#: wait for their ETA.
RUNS_PER_PROCESS = 3

Verdict = Literal["honoured", "lost", "too late", "failed"]


class AbortMoment(Enum):
    """When in its life a run is aborted."""

    MIDWAY = "mid-way"
    BETWEEN = "between progress updates"
    STARTED = "just started"
    QUEUED = "queued"
    ETA = "on ETA"

    @property
    def countdown(self) -> float | None:
        """Seconds until the ETA, or None for a task without one."""
        return COUNTDOWN if self is AbortMoment.ETA else None

    async def wait(self, entry: Entry, files: int) -> None:
        """Wait until the run has come to this moment, at most halfway through."""
        if self in {AbortMoment.QUEUED, AbortMoment.ETA}:
            return
        reached = self._files_hashed(files)
        await wait_for(lambda: entry.started and entry.hashed >= reached)

    def _files_hashed(self, files: int) -> int:
        half = files // 2
        if self is AbortMoment.STARTED:
            return 0
        if self is AbortMoment.MIDWAY:
            return random.randint(half // 2, half)  # noqa: S311
        updates = random.randint(0, half // UPDATE_INTERVAL)  # noqa: S311
        return min(updates * UPDATE_INTERVAL + UPDATE_INTERVAL // 2, half)


@dataclass(frozen=True)
class IndexJob:
    """What a run does: index the first *files* below *path* in at least *seconds*."""

    path: str
    files: int
    seconds: float

    @property
    def rest(self) -> float:
        """Return the pause after each file, in seconds."""
        return self.seconds / self.files


@dataclass
class DemoRun:
    """One run of the job; times are of the monotonic clock."""

    number: int
    moment: AbortMoment
    entry: Entry = field(repr=False)
    called_at: float = 0.0
    returned_at: float = 0.0
    is_over: bool = False
    #: The library says that the body never ran.
    is_refused: bool = False

    @property
    def verdict(self) -> Verdict:
        """Whether the abort was honoured, judged by the body's own ledger entry."""
        if self.entry.aborted or (self.is_refused and not self.entry.started):
            return "honoured"
        if not self.entry.stopped:
            return "failed"
        # The body ran to its end. If its last check began before abort() returned,
        # the run could no longer stop.
        return "lost" if self.entry.checked > self.returned_at else "too late"

    @property
    def stopped_after(self) -> float | None:
        """Seconds from abort()'s return to the end of a body that was running."""
        if not self.entry.aborted or self.entry.started > self.returned_at:
            return None
        # The body may see the abort before abort() returns to the client.
        return max(0.0, self.entry.stopped - self.returned_at)


def plan(entries: Iterable[tuple[int, Entry]]) -> list[DemoRun]:
    """Return a run for each of *entries*; the abort moments take turns."""
    return [
        DemoRun(number, moment, entry)
        for moment, (number, entry) in zip(cycle(AbortMoment), entries, strict=False)
    ]


async def abort_all(
    library: Library, job: IndexJob, runs: Sequence[DemoRun], concurrency: int
) -> None:
    """Start and abort *runs*; some more are published than the worker can run."""
    room = anyio.Semaphore(RUNS_PER_PROCESS * concurrency)

    async def start_and_abort(run: DemoRun) -> None:
        try:
            with anyio.fail_after(RUN_TIMEOUT):
                await _start_and_abort(library, job, run)
        except TimeoutError:
            raise DemoError(
                f"{library.name}: a run that was aborted {run.moment.value} did not "
                f"end within {RUN_TIMEOUT:g} s"
            ) from None
        finally:
            room.release()

    async with anyio.create_task_group() as group:
        for run in runs:
            await room.acquire()
            group.start_soon(start_and_abort, run)


async def _start_and_abort(library: Library, job: IndexJob, run: DemoRun) -> None:
    arguments = (run.number, job.path, job.files, job.rest)
    countdown = run.moment.countdown
    task_id = await library.send("index", *arguments, countdown=countdown)
    await run.moment.wait(run.entry, job.files)
    run.called_at = time.monotonic()
    await library.abort(task_id)
    run.returned_at = time.monotonic()
    run.is_refused = await library.wait_for_end(task_id, run.entry)
    run.is_over = True
