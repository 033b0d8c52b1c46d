"""Runs of both libraries, one after the other, on the same bench."""

import anyio
from anyio import to_thread

from aioabort.demo.arguments import Options
from aioabort.demo.bench import UNUSED, Bench
from aioabort.demo.display import Display
from aioabort.demo.libraries import LIBRARIES, Library, open_library
from aioabort.demo.runs import Job, Run, abort_all, plan
from aioabort.demo.summary import Summary

#: Checks of a round that is timed: the original asks the database at each.
CHECKS = {LIBRARIES["celery"]: 10, LIBRARIES["aioabort"]: 20_000}

#: Seconds after which the worker has stored how the last runs ended.
STORED_AFTER = 0.3


def entries_needed(options: Options) -> int:
    """Return how many entries of the ledger ``compare()`` uses."""
    return options.runs * len(LIBRARIES)


async def compare(
    options: Options, bench: Bench, job: Job, display: Display
) -> list[Summary]:
    """Abort runs of each library that was asked for."""
    names = [LIBRARIES[options.only]] if options.only else LIBRARIES.values()
    return [await _try(name, options, bench, job, display) for name in names]


async def weigh(library: Library) -> tuple[float, float]:
    """Return the seconds of a check and of ``Event.is_set()``, inside a task."""
    task_id = await library.send("weigh", UNUSED, CHECKS[library.name])
    check, is_set = await library.wait(task_id)
    return check, is_set


async def _try(
    name: str, options: Options, bench: Bench, job: Job, display: Display
) -> Summary:
    runs = plan(bench.new_entry() for _ in range(options.runs))
    display.say(f"{name}: starting a worker ({options.pool}, {options.concurrency})")
    async with bench.worker(options.pool, options.concurrency):
        before = await to_thread.run_sync(bench.database.count)
        async with open_library(name) as library:
            await _abort_shown(library, job, runs, options.concurrency, display)
            await anyio.sleep(STORED_AFTER)
            after = await to_thread.run_sync(bench.database.count)
            check, is_set = await weigh(library)
    # Now that the worker is gone, nothing can change.
    return Summary(
        library=name,
        runs=runs,
        statements=(after - before) / len(runs),
        unit=bench.database.unit,
        check=check,
        is_set=is_set,
    )


async def _abort_shown(
    library: Library, job: Job, runs: list[Run], concurrency: int, display: Display
) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(display.follow, library.name, runs, job.files)
        await abort_all(library, job, runs, concurrency)
        group.cancel_scope.cancel()
