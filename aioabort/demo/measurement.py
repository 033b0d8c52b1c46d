"""``--measure``: throughput and latencies of both libraries.

One worker runs everything, and the libraries take turns, because the speed of a machine
changes from one minute to the next.
"""

import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import anyio
from anyio import to_thread

from aioabort.demo import DemoError
from aioabort.demo.arguments import Options
from aioabort.demo.comparison import time_checks
from aioabort.demo.display import Display
from aioabort.demo.ledger import wait_for
from aioabort.demo.libraries import LIBRARIES, Library, open_library
from aioabort.demo.services import UNUSED_ENTRY, Services
from aioabort.demo.worker_process import WorkerProcess

#: Repetitions of each latency measurement.
TIMES = 20

#: Rounds of the throughput measurement, and tasks per library and round.
ROUNDS = 5
TASKS = 150

#: Processes of the worker: the cores of a small machine.
CONCURRENCY = 2

#: Seconds within which all tasks of a round must end.
ROUND_TIMEOUT = 60.0

#: Ledger entries that ``measure()`` needs.
ENTRIES = 3 * TIMES * len(LIBRARIES)

MeasureOnce = Callable[[Library], Awaitable[Sequence[float]]]


@dataclass(frozen=True)
class Measurement:
    """One row of the table: a number for each library, in *unit*."""

    label: str
    unit: str
    original: float
    ours: float


async def measure(
    options: Options, services: Services, display: Display
) -> list[Measurement]:
    """Measure both libraries on one worker."""
    concurrency = 1 if options.pool == "solo" else CONCURRENCY
    original, ours = LIBRARIES.values()
    async with (
        services.worker(options.pool, concurrency) as worker,
        open_library(original) as theirs,
        open_library(ours) as mine,
    ):
        libraries = (theirs, mine)
        display.say("Measuring the cost of a check")
        rows = await _checks(*libraries)
        for kind, task in (("waits", "doze"), ("spins", "spin")):
            display.say(f"Measuring the latency of abort() for a task that {kind}")
            labels = {f"abort() to seen, {kind}": "s", "  from its return": "s"}
            once = partial(_abort_latency, services, task)
            rows += await _in_turn(labels, once, libraries, TIMES)
        display.say("Measuring the latency of results")
        labels = {"committed to awaited": "s"}
        rows += await _in_turn(
            labels, partial(_result_latency, services), libraries, TIMES
        )
        display.say("Measuring throughput")
        once = partial(_tasks_per_second, services, worker)
        rows += await _in_turn({"no-op tasks": "/s"}, once, libraries, ROUNDS)
    return rows


async def _checks(theirs: Library, mine: Library) -> list[Measurement]:
    original, is_set_there = await time_checks(theirs)
    ours, is_set_here = await time_checks(mine)
    factors = original / is_set_there, ours / is_set_here
    return [
        Measurement("one check", "s", original, ours),
        Measurement("  of Event.is_set()", "x", *factors),
    ]


async def _in_turn(
    labels: Mapping[str, str],
    once: MeasureOnce,
    libraries: tuple[Library, Library],
    times: int,
) -> list[Measurement]:
    """Return the medians of what *once* returns; *labels* are the names and units."""
    results: dict[str, list[Sequence[float]]] = {
        library.name: [] for library in libraries
    }
    for _ in range(times):
        for library in libraries:
            results[library.name].append(await once(library))
    original, ours = (map(median, zip(*r, strict=True)) for r in results.values())
    rows = zip(labels, labels.values(), original, ours, strict=True)
    return [Measurement(*row) for row in rows]


async def _abort_latency(
    services: Services, task: str, library: Library
) -> Sequence[float]:
    """Return the seconds from abort()'s call and return until a check is True."""
    number, entry = services.new_entry()
    task_id = await library.send(task, number)
    await wait_for(lambda: entry.started)
    await anyio.sleep(random.uniform(0.02, 0.1))  # noqa: S311
    called_at = time.monotonic()
    await library.abort(task_id)
    returned_at = time.monotonic()
    await wait_for(lambda: entry.stopped)
    if not entry.aborted:
        raise DemoError(f"{library.name}: an abort was lost during the measurement")
    # The task may see the abort before abort() returns.
    return entry.stopped - called_at, max(0.0, entry.stopped - returned_at)


async def _result_latency(services: Services, library: Library) -> Sequence[float]:
    """Return the seconds from the commit of a result until its waiter resumes."""
    number, entry = services.new_entry()
    task_id = await library.send("nap", number, random.uniform(0.1, 0.6))  # noqa: S311
    await library.wait(task_id)
    resumed_at = time.monotonic()
    await wait_for(lambda: entry.stopped)
    return (max(0.0, resumed_at - entry.stopped),)


async def _tasks_per_second(
    services: Services, worker: WorkerProcess, library: Library
) -> Sequence[float]:
    """Return the throughput of tasks that were all queued before the first began."""
    with worker.paused():
        ids = [await library.send("noop", UNUSED_ENTRY) for _ in range(TASKS)]
    with anyio.fail_after(ROUND_TIMEOUT):
        while True:
            await anyio.sleep(0.25)
            ended, seconds = await to_thread.run_sync(
                services.database.count_ended, ids
            )
            if ended == TASKS:
                return ((TASKS - 1) / seconds,)
