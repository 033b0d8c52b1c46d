"""Runs of the index task, each of them aborted, and what became of the aborts."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Literal

import anyio

from aioabort.demo.errors import DemoError
from aioabort.demo.ledger import Entry
from aioabort.demo.libraries import Library
from aioabort.demo.moments import Moment

#: Seconds within which a run that was aborted, or not, must be over.
LONGEST_RUN = 120.0

#: Runs at a time for each that the worker can run: the others are queued or on ETA.
WAITING = 3

Verdict = Literal["honoured", "lost", "too late", "failed"]


@dataclass(frozen=True)
class Job:
    """What is indexed: the first *files* files below *path*, not in less than *seconds*."""

    path: str
    files: int
    seconds: float

    @property
    def rest(self) -> float:
        """Return the pause after each file."""
        return self.seconds / self.files


@dataclass
class Run:
    """One run of the job; the moments are of the monotonic clock."""

    number: int
    moment: Moment
    entry: Entry = field(repr=False)
    called_at: float = 0.0
    returned_at: float = 0.0
    is_over: bool = False
    #: The library says that the body never ran.
    is_refused: bool = False

    @property
    def verdict(self) -> Verdict:
        """What became of the abort, by what the body itself wrote down."""
        if self.entry.aborted or (self.is_refused and not self.entry.started):
            return "honoured"
        if not self.entry.stopped:
            return "failed"
        # It ran to its end. An abort() that returned after its last check was not
        # asked of a run that could still have stopped.
        return "lost" if self.entry.checked > self.returned_at else "too late"

    @property
    def stopped_after(self) -> float | None:
        """Seconds from abort()'s return to the stop of a body that was running."""
        if not self.entry.aborted or self.entry.started > self.returned_at:
            return None
        # It may have seen the request before its requester knew that it was stored.
        return max(0.0, self.entry.stopped - self.returned_at)


def plan(entries: Iterable[tuple[int, Entry]]) -> list[Run]:
    """Return a run for each of *entries*, all moments in turn."""
    return [
        Run(number, moment, entry)
        for moment, (number, entry) in zip(cycle(Moment), entries, strict=False)
    ]


async def abort_all(
    library: Library, job: Job, runs: Sequence[Run], concurrency: int
) -> None:
    """Start and abort *runs*, with always some more than the worker can run."""
    room = anyio.Semaphore(WAITING * concurrency)

    async def one(run: Run) -> None:
        try:
            with anyio.fail_after(LONGEST_RUN):
                await _abort_one(library, job, run)
        except TimeoutError:
            raise DemoError(
                f"{library.name}: a run that was aborted {run.moment.value} did not "
                f"end within {LONGEST_RUN:g} s"
            ) from None
        finally:
            room.release()

    async with anyio.create_task_group() as group:
        for run in runs:
            await room.acquire()
            group.start_soon(one, run)


async def _abort_one(library: Library, job: Job, run: Run) -> None:
    arguments = (run.number, job.path, job.files, job.rest)
    countdown = run.moment.countdown
    task_id = await library.send("index", *arguments, countdown=countdown)
    await run.moment.arrive(run.entry, job.files)
    run.called_at = time.monotonic()
    await library.abort(task_id)
    run.returned_at = time.monotonic()
    run.is_refused = await library.ended(task_id, run.entry)
    run.is_over = True
