"""The command line of the demo."""

import argparse
import math
import os
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

Number = TypeVar("Number", int, float)

DESCRIPTION = """\
Serves a page on which you start tasks that index a directory, and abort them. With
--compare, and without a terminal, the demo aborts runs by itself instead: queued, on
ETA, just started, mid-way and between progress updates; first with
celery.contrib.abortable, then with aioabort. Exit status: 0 if aioabort lost no abort, 1
if it lost one, 2 if an option cannot be used.
"""

#: Seconds of a run with and without notifications. Without them a task sees an abort
#: up to one poll interval later, so only a longer run can still stop.
SECONDS = {True: 1.5, False: 4.0}

#: Runs of each library.
RUNS = 60

#: Seconds of a run on the page: enough time to press a button.
SECONDS_ON_PAGE = 20.0

MAX_PORT = 65_535

Mode = Literal["page", "compare", "measure"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The parsed options; paths and URLs are not checked yet."""

    mode: Mode
    browser: bool
    port: int
    path: Path
    files: int
    runs: int
    seconds: float
    pool: str
    concurrency: int
    notify: bool
    only: str | None
    dsn: str | None
    broker: str | None


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Parse the command line; exit with status 2 if it is wrong."""
    given = vars(_parser().parse_args(arguments))
    mode = given["mode"] = given["mode"] or _default_mode(given)
    if given["seconds"] is None:
        is_page = mode == "page"
        given["seconds"] = SECONDS_ON_PAGE if is_page else SECONDS[given["notify"]]
    if given["pool"] == "solo":
        given["concurrency"] = 1
    given["runs"] = given["runs"] or RUNS
    given["port"] = given["port"] or 0
    return Options(**given)


def _default_mode(given: dict[str, Any]) -> Mode:
    """Return the mode if neither --compare nor --measure was given."""
    if given["runs"] or given["only"]:
        return "compare"
    if given["port"] is not None or not given["browser"]:
        return "page"
    # Without a user at a terminal, the page would be served for ever.
    has_user = sys.stdout.isatty() and not os.environ.get("CI")
    return "page" if has_user else "compare"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m aioabort.demo",
        usage="%(prog)s [options]",
        description=DESCRIPTION,
    )
    _add_modes(parser)
    _add_runs(parser)
    _add_services(parser)
    return parser


def _add_modes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("modes")
    modes = group.add_mutually_exclusive_group()
    modes.add_argument(
        "--compare",
        dest="mode",
        action="store_const",
        const="compare",
        help="abort runs of both libraries and print a table; serve no page",
    )
    modes.add_argument(
        "--measure",
        dest="mode",
        action="store_const",
        const="measure",
        help="measure throughput and latencies of both libraries",
    )
    group.add_argument(
        "--no-browser",
        dest="browser",
        action="store_false",
        help="serve the page, also without a terminal, and open no browser",
    )
    group.add_argument(
        "--port",
        type=_at_least(int, 0, MAX_PORT),
        help="serve the page on this port of 127.0.0.1 (default: a free port)",
    )


def _add_runs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("runs").add_argument
    stdlib = Path(sysconfig.get_path("stdlib"))
    add(
        *("--path", "-p"),
        type=Path,
        default=stdlib,
        metavar="DIRECTORY",
        help="directory to index (default: this Python's standard library)",
    )
    add(
        "--files",
        type=_at_least(int, 1),
        default=300,
        help="number of files to index (default: %(default)s)",
    )
    add(
        "--seconds",
        type=_at_least(float, 0.1, 86_400.0),
        help="minimum duration of a run, which rests after each file (default: "
        f"{SECONDS_ON_PAGE:g} on the page, otherwise {SECONDS[True]:g}, or "
        f"{SECONDS[False]:g} with --no-notify)",
    )
    add(
        "--runs",
        type=_at_least(int, 1),
        help=f"runs of each library with --compare (default: {RUNS})",
    )
    add(
        "--only",
        choices=("aioabort", "celery"),
        help="run only this library",
    )


def _add_services(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("services").add_argument
    add(
        "--pool",
        choices=("prefork", "threads", "solo"),
        default="prefork",
        help="the worker's pool (default: %(default)s)",
    )
    add(
        *("--concurrency", "-c"),
        type=_at_least(int, 1),
        default=4,
        help="tasks that the worker runs at the same time (default: %(default)s)",
    )
    add(
        "--no-notify",
        dest="notify",
        action="store_false",
        help="let aioabort poll only, without PostgreSQL's notifications",
    )
    add(
        "--dsn",
        default=os.environ.get("AIOABORT_TEST_DSN") or None,
        metavar="URL",
        help="PostgreSQL server (default: $AIOABORT_TEST_DSN, or a throw-away server)",
    )
    add(
        "--broker",
        metavar="URL",
        help="Celery's broker (default: a temporary directory)",
    )


def _at_least(
    number: type[Number], least: float, most: float = math.inf
) -> Callable[[str], Number]:
    def read(text: str) -> Number:
        value = number(text)
        if not value >= least:  # also a NaN
            raise argparse.ArgumentTypeError(f"must be {least:g} or more")
        if value > most:
            raise argparse.ArgumentTypeError(f"must be {most:g} or less")
        return value

    # argparse names this function in the error for a text that is not a number.
    read.__name__ = number.__name__
    return read
