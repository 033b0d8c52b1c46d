"""One session of the demo: start the services, then serve the page or print a table."""

from functools import partial

import anyio
from rich.console import Console

from aioabort.demo import comparison, measurement
from aioabort.demo.arguments import Options
from aioabort.demo.display import Display, LiveDisplay, PlainDisplay
from aioabort.demo.libraries import LIBRARIES
from aioabort.demo.page.application import MAX_RUNS
from aioabort.demo.page.server import serve
from aioabort.demo.report import print_measurements, print_summaries
from aioabort.demo.runs import IndexJob
from aioabort.demo.services import Services, open_services
from aioabort.demo.summary import Summary
from aioabort.demo.tasks import checked_files


def run(options: Options) -> bool:
    """Run the session; return False if aioabort lost an abort."""
    console = Console()
    display = LiveDisplay(console) if console.is_terminal else PlainDisplay()
    run_on, entries = {
        "page": (_serve, MAX_RUNS),
        "compare": (_compare, comparison.entries_needed(options)),
        "measure": (_measure, measurement.ENTRIES),
    }[options.mode]
    files = checked_files(options.path, options.files)
    job = IndexJob(str(options.path.resolve()), len(files), options.seconds)
    display.say(
        "Starting PostgreSQL" if options.dsn is None else "Using your PostgreSQL"
    )
    with open_services(options, entries) as services:
        if services.database.note:
            display.say(services.database.note)
        return run_on(options, services, job, console, display)


def _serve(
    options: Options, services: Services, job: IndexJob, _: Console, display: Display
) -> bool:
    display.say(f"Starting a worker ({options.pool}, {options.concurrency})")
    try:
        anyio.run(partial(serve, options, services, job, display))
    except KeyboardInterrupt:
        # Ctrl-C is the normal end.
        display.say("Stopped.")
    return True


def _compare(
    options: Options,
    services: Services,
    job: IndexJob,
    console: Console,
    display: Display,
) -> bool:
    display.say(
        f"Indexing the first {job.files} files of {job.path}, "
        f"{job.seconds:g} s a run, {options.runs} runs"
        + ("" if options.only else " of each library")
    )
    summaries = anyio.run(partial(comparison.compare, options, services, job, display))
    print_summaries(console, summaries)
    return not any(map(_has_lost_aborts, summaries))


def _has_lost_aborts(summary: Summary) -> bool:
    is_aioabort = summary.library == LIBRARIES["aioabort"]
    return is_aioabort and summary.count("lost", "failed") > 0


def _measure(
    options: Options,
    services: Services,
    _: IndexJob,
    console: Console,
    display: Display,
) -> bool:
    measurements = anyio.run(partial(measurement.measure, options, services, display))
    print_measurements(console, measurements)
    return True
