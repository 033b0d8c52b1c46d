"""``--compare``: abort runs of both libraries, one library after the other."""

import anyio
from anyio import to_thread

from aioabort.demo.arguments import Options
from aioabort.demo.display import Display
from aioabort.demo.libraries import LIBRARIES, Library, open_library
from aioabort.demo.runs import DemoRun, IndexJob, abort_all, plan
from aioabort.demo.services import UNUSED_ENTRY, Services
from aioabort.demo.summary import Summary

#: Checks in a timed round. celery.contrib.abortable queries the database for each.
CHECKS = {LIBRARIES["celery"]: 10, LIBRARIES["aioabort"]: 20_000}

#: Seconds that the worker may take to store the results of the last runs.
STORE_DELAY = 0.3


def entries_needed(options: Options) -> int:
    """Return how many ledger entries ``compare()`` needs."""
    return options.runs * len(LIBRARIES)


async def compare(
    options: Options, services: Services, job: IndexJob, display: Display
) -> list[Summary]:
    """Abort runs of both libraries, or of the one that --only names."""
    names = [LIBRARIES[options.only]] if options.only else LIBRARIES.values()
    return [await _abort_runs(name, options, services, job, display) for name in names]


async def time_checks(library: Library) -> tuple[float, float]:
    """Return the seconds that a check and an ``Event.is_set()`` take inside a task."""
    task_id = await library.send("time_checks", UNUSED_ENTRY, CHECKS[library.name])
    check, is_set = await library.wait(task_id)
    return check, is_set


async def _abort_runs(
    name: str, options: Options, services: Services, job: IndexJob, display: Display
) -> Summary:
    runs = plan(services.new_entry() for _ in range(options.runs))
    display.say(f"{name}: starting a worker ({options.pool}, {options.concurrency})")
    async with services.worker(options.pool, options.concurrency):
        before = await to_thread.run_sync(services.database.count)
        async with open_library(name) as library:
            await _abort_and_display(library, job, runs, options.concurrency, display)
            await anyio.sleep(STORE_DELAY)
            after = await to_thread.run_sync(services.database.count)
            check, is_set = await time_checks(library)
    # The worker has stopped, so the ledger no longer changes.
    return Summary(
        library=name,
        runs=runs,
        statements=(after - before) / len(runs),
        unit=services.database.unit,
        check=check,
        is_set=is_set,
    )


async def _abort_and_display(
    library: Library,
    job: IndexJob,
    runs: list[DemoRun],
    concurrency: int,
    display: Display,
) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(display.follow, library.name, runs, job.files)
        await abort_all(library, job, runs, concurrency)
        group.cancel_scope.cancel()
