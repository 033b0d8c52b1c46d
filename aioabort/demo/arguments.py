"""What can be asked of the demo on its command line."""

import argparse
import os
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Number = TypeVar("Number", int, float)

DESCRIPTION = """\
A real worker indexes a real directory tree, and its runs are aborted at every moment:
queued, on ETA, just started, mid-way and between progress updates; first with
celery.contrib.abortable, then with aioabort. Exit status: 0 if aioabort lost no abort,
1 if it did, 2 if something that was given cannot be used.
"""

#: A request is seen within one poll interval without notifications, so that runs must
#: be longer for every abort to be early enough.
SECONDS = {True: 1.5, False: 4.0}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, checked as far as that is possible without a look outside."""

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
    measure: bool


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line; ends the program with status 2 if it is wrong."""
    given = vars(_parser().parse_args(arguments))
    if given["seconds"] is None:
        given["seconds"] = SECONDS[given["notify"]]
    if given["pool"] == "solo":
        given["concurrency"] = 1
    return Options(**given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m aioabort.demo",
        usage="%(prog)s [options]",
        description=DESCRIPTION,
    )
    _add_what_runs(parser)
    _add_where(parser)
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure throughput and latencies instead of aborting runs",
    )
    return parser


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
        help="what a run takes at least, by resting after each file "
        f"(default: {SECONDS[True]:g}, or {SECONDS[False]:g} with --no-notify)",
    )
    add(
        "--runs",
        type=_at_least(int, 1),
        default=100,
        help="runs of each library (default: %(default)s)",
    )
    add("--only", choices=("aioabort", "celery"), help="one of the two libraries")


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


def _at_least(number: type[Number], least: float) -> Callable[[str], Number]:
    def read(text: str) -> Number:
        if (value := number(text)) < least:
            raise argparse.ArgumentTypeError(f"must be {least:g} or more")
        return value

    # argparse tells it when the text is no number.
    read.__name__ = number.__name__
    return read
