"""What can be asked of the demo on its command line."""

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
Serves a page on which you start real work, the indexing of a directory tree, and abort
it. Where nobody looks at a terminal, or with --compare, runs are aborted at every
moment instead: queued, on ETA, just started, mid-way and between progress updates;
first with celery.contrib.abortable, then with aioabort. Exit status: 0 if aioabort lost
no abort, 1 if it did, 2 if something that was given cannot be used.
"""

#: A request is seen within one poll interval without notifications, so that runs must
#: be longer for every abort to be early enough.
SECONDS = {True: 1.5, False: 4.0}

#: Of each library.
RUNS = 60

#: Long enough for somebody to look and to press a button.
SECONDS_ON_PAGE = 20.0

MOST_PORTS = 65_535

Mode = Literal["page", "compare", "measure"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, checked as far as that is possible without a look outside."""

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
    """Read the command line; ends the program with status 2 if it is wrong."""
    given = vars(_parser().parse_args(arguments))
    mode = given["mode"] = given["mode"] or _mode(given)
    if given["seconds"] is None:
        is_page = mode == "page"
        given["seconds"] = SECONDS_ON_PAGE if is_page else SECONDS[given["notify"]]
    if given["pool"] == "solo":
        given["concurrency"] = 1
    given["runs"] = given["runs"] or RUNS
    given["port"] = given["port"] or 0
    return Options(**given)


def _mode(given: dict[str, Any]) -> Mode:
    """Return what is meant if it is not said."""
    if given["runs"] or given["only"]:
        return "compare"
    if given["port"] is not None or not given["browser"]:
        return "page"
    # A page would wait for somebody who never comes.
    is_watched = sys.stdout.isatty() and not os.environ.get("CI")
    return "page" if is_watched else "compare"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m aioabort.demo",
        usage="%(prog)s [options]",
        description=DESCRIPTION,
    )
    _add_modes(parser)
    _add_what_runs(parser)
    _add_where(parser)
    return parser


def _add_modes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is shown")
    modes = group.add_mutually_exclusive_group()
    modes.add_argument(
        "--compare",
        dest="mode",
        action="store_const",
        const="compare",
        help="abort runs of both libraries and print a table, instead of a page",
    )
    modes.add_argument(
        "--measure",
        dest="mode",
        action="store_const",
        const="measure",
        help="measure throughput and latencies of both",
    )
    group.add_argument(
        "--no-browser",
        dest="browser",
        action="store_false",
        help="serve the page, on a terminal or not, and open no browser",
    )
    group.add_argument(
        "--port",
        type=_at_least(int, 0, MOST_PORTS),
        help="serve the page on this port of 127.0.0.1 (default: one that is free)",
    )


def _add_what_runs(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what runs").add_argument
    stdlib = Path(sysconfig.get_path("stdlib"))
    add(
        *("--path", "-p"),
        type=Path,
        default=stdlib,
        metavar="DIRECTORY",
        help="tree to index (default: this Python's standard library)",
    )
    add(
        "--files",
        type=_at_least(int, 1),
        default=300,
        help="index so many (default: %(default)s)",
    )
    add(
        "--seconds",
        type=_at_least(float, 0.1),
        help="what a run takes at least, by resting after each file (default: "
        f"{SECONDS_ON_PAGE:g} on the page, else {SECONDS[True]:g}, or "
        f"{SECONDS[False]:g} with --no-notify)",
    )
    add(
        "--runs",
        type=_at_least(int, 1),
        help=f"compare so many runs of each library (default: {RUNS})",
    )
    add(
        "--only",
        choices=("aioabort", "celery"),
        help="compare none: run this one alone",
    )


def _add_where(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("on what").add_argument
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
        help="tasks that the worker runs at a time (default: %(default)s)",
    )
    add(
        "--no-notify",
        dest="notify",
        action="store_false",
        help="aioabort polls only, without PostgreSQL's notifications",
    )
    add(
        "--dsn",
        default=os.environ.get("AIOABORT_TEST_DSN") or None,
        metavar="URL",
        help="PostgreSQL to use (default: $AIOABORT_TEST_DSN, or a throw-away server)",
    )
    add(
        "--broker",
        metavar="URL",
        help="Celery's broker (default: a temporary folder)",
    )


def _at_least(
    number: type[Number], least: float, most: float = math.inf
) -> Callable[[str], Number]:
    def read(text: str) -> Number:
        value = number(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be {least:g} or more")
        if value > most:
            raise argparse.ArgumentTypeError(f"must be {most:g} or less")
        return value

    # argparse tells it when the text is no number.
    read.__name__ = number.__name__
    return read
