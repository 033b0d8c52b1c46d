"""What the libraries cost: ``--measure``.

All of it in one worker, and the libraries in turn, because a machine is faster in one
minute than in the next.
"""

import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import anyio
from anyio import to_thread

from aioabort.demo.arguments import Options
from aioabort.demo.bench import UNUSED, Bench
from aioabort.demo.comparison import weigh
from aioabort.demo.display import Display
from aioabort.demo.errors import DemoError
from aioabort.demo.ledger import until
from aioabort.demo.libraries import LIBRARIES, Library, open_library
from aioabort.demo.worker import Worker

#: How often each latency is measured.
TIMES = 20

#: Rounds of throughput, and tasks of each library in a round.
ROUNDS = 5
TASKS = 150

#: As many tasks at a time as a small machine has cores.
CONCURRENCY = 2

#: Seconds within which all tasks of a round end.
LONGEST_ROUND = 60.0

#: How many entries of the ledger are needed.
ENTRIES = 3 * TIMES * len(LIBRARIES)

Once = Callable[[Library], Awaitable[Sequence[float]]]


@dataclass(frozen=True)
class Measurement:
    """One row of the table: a figure of each library, in *unit*."""

    label: str
    unit: str
    original: float
    ours: float


async def measure(
    options: Options, bench: Bench, display: Display
) -> list[Measurement]:
    """Measure both libraries on one worker."""
    concurrency = 1 if options.pool == "solo" else CONCURRENCY
    original, ours = LIBRARIES.values()
    async with (
        bench.worker(options.pool, concurrency) as worker,
        open_library(original) as theirs,
        open_library(ours) as mine,
    ):
        libraries = (theirs, mine)
        display.say("Measuring the cost of a check")
        rows = await _checks(*libraries)
        for kind, task in (("waits", "doze"), ("spins", "spin")):
            display.say(f"Measuring the latency of abort() for a task that {kind}")
            labels = {f"abort() to seen, {kind}": "s", "  from its return": "s"}
            once = partial(_noticed, bench, task)
            rows += await _in_turn(labels, once, libraries, TIMES)
        display.say("Measuring the latency of results")
        labels = {"committed to awaited": "s"}
        rows += await _in_turn(labels, partial(_awaited, bench), libraries, TIMES)
        display.say("Measuring throughput")
        once = partial(_tasks_per_second, bench, worker)
        rows += await _in_turn({"no-op tasks": "/s"}, once, libraries, ROUNDS)
    return rows


async def _checks(theirs: Library, mine: Library) -> list[Measurement]:
    original, is_set_there = await weigh(theirs)
    ours, is_set_here = await weigh(mine)
    factors = original / is_set_there, ours / is_set_here
    return [
        Measurement("one check", "s", original, ours),
        Measurement("  of Event.is_set()", "x", *factors),
    ]


async def _in_turn(
    labels: Mapping[str, str],
    once: Once,
    libraries: tuple[Library, Library],
    times: int,
) -> list[Measurement]:
    """Return the medians of all that *once* measures; *labels* names it and its unit."""
    results: dict[str, list[Sequence[float]]] = {
        library.name: [] for library in libraries
    }
    for _ in range(times):
        for library in libraries:
            results[library.name].append(await once(library))
    original, ours = (map(median, zip(*r, strict=True)) for r in results.values())
    rows = zip(labels, labels.values(), original, ours, strict=True)
    return [Measurement(*row) for row in rows]


async def _noticed(bench: Bench, task: str, library: Library) -> Sequence[float]:
    """Return the seconds from abort()'s call, and its return, to a check's True."""
    number, entry = bench.new_entry()
    task_id = await library.send(task, number)
    await until(lambda: entry.started)
    await anyio.sleep(random.uniform(0.02, 0.1))  # noqa: S311
    called_at = time.monotonic()
    await library.abort(task_id)
    returned_at = time.monotonic()
    await until(lambda: entry.stopped)
    if not entry.aborted:
        raise DemoError(f"{library.name}: an abort was lost while it was measured")
    # The task may know before abort() has returned.
    return entry.stopped - called_at, max(0.0, entry.stopped - returned_at)


async def _awaited(bench: Bench, library: Library) -> Sequence[float]:
    """Return the seconds from a result's commit until whoever awaits it goes on."""
    number, entry = bench.new_entry()
    task_id = await library.send("nap", number, random.uniform(0.1, 0.6))  # noqa: S311
    await library.wait(task_id)
    resumed_at = time.monotonic()
    await until(lambda: entry.stopped)
    return (max(0.0, resumed_at - entry.stopped),)


async def _tasks_per_second(
    bench: Bench, worker: Worker, library: Library
) -> Sequence[float]:
    """Return how fast tasks end that are all in the queue when the first begins."""
    with worker.held():
        ids = [await library.send("noop", UNUSED) for _ in range(TASKS)]
    with anyio.fail_after(LONGEST_ROUND):
        while True:
            await anyio.sleep(0.25)
            ended, seconds = await to_thread.run_sync(bench.database.ended, ids)
            if ended == TASKS:
                return ((TASKS - 1) / seconds,)
