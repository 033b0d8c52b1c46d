"""One session of the demo, from what was asked to the page or the table."""

from functools import partial

import anyio
from rich.console import Console

from aioabort.demo import comparison, measuring
from aioabort.demo.arguments import Options
from aioabort.demo.bench import Bench, open_bench
from aioabort.demo.display import Display, LiveDisplay, PlainDisplay
from aioabort.demo.libraries import LIBRARIES
from aioabort.demo.page.server import serve
from aioabort.demo.page.site import MOST_RUNS
from aioabort.demo.runs import Job
from aioabort.demo.summary import Summary
from aioabort.demo.table import print_measurements, print_summaries
from aioabort.demo.tree import checked_files


def run(options: Options) -> bool:
    """Run the session; return whether aioabort kept what it promises."""
    console = Console()
    display = LiveDisplay(console) if console.is_terminal else PlainDisplay()
    run_on, entries = {
        "page": (_serve, MOST_RUNS),
        "compare": (_compare, comparison.entries_needed(options)),
        "measure": (_measure, measuring.ENTRIES),
    }[options.mode]
    files = checked_files(options.path, options.files)
    job = Job(str(options.path.resolve()), len(files), options.seconds)
    display.say(
        "Starting PostgreSQL" if options.dsn is None else "Using your PostgreSQL"
    )
    with open_bench(options, entries) as bench:
        if bench.database.note:
            display.say(bench.database.note)
        return run_on(options, bench, job, console, display)


def _serve(
    options: Options, bench: Bench, job: Job, _: Console, display: Display
) -> bool:
    display.say(f"Starting a worker ({options.pool}, {options.concurrency})")
    try:
        anyio.run(partial(serve, options, bench, job, display))
    except KeyboardInterrupt:
        # How it is meant to end.
        display.say("Stopped.")
    return True


def _compare(
    options: Options, bench: Bench, job: Job, console: Console, display: Display
) -> bool:
    display.say(
        f"Indexing the first {job.files} files of {job.path}, "
        f"{job.seconds:g} s a run, {options.runs} runs"
        + ("" if options.only else " of each library")
    )
    summaries = anyio.run(partial(comparison.compare, options, bench, job, display))
    print_summaries(console, summaries)
    return not any(map(_is_broken, summaries))


def _is_broken(summary: Summary) -> bool:
    is_ours = summary.library == LIBRARIES["aioabort"]
    return is_ours and summary.count("lost", "failed") > 0


def _measure(
    options: Options, bench: Bench, _: Job, console: Console, display: Display
) -> bool:
    measurements = anyio.run(partial(measuring.measure, options, bench, display))
    print_measurements(console, measurements)
    return True
