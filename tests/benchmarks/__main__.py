"""The command line: ``python -m tests.benchmarks [--quick] [--only NAME] [--json FILE]``."""

import argparse
import time
from importlib import import_module
from pathlib import Path

from .figures import amount
from .place import open_place
from .records import Series
from .targets import TARGETS

SUBJECTS = (
    *("checking", "stopping", "requesting", "waiting", "source_waiting"),
    *("overhead", "backend", "growth"),
)


def main() -> None:
    """Measure what was asked for, and print it."""
    options = _arguments().parse_args()
    with open_place(options.dsn, quick=options.quick) as place:
        for name in options.only or SUBJECTS:
            print(f"Measuring: {name} …", flush=True)
            start = time.monotonic()
            import_module(f".{name}", __package__).measure(place)
            print(f"It took {time.monotonic() - start:.0f} s", flush=True)
    for series in place.records.series:
        print(_line(series))
    print()
    for row in (target.row(place.records) for target in TARGETS):
        print("{:68} {:>10} {:>10}  {}".format(*row))
    if options.json:
        place.records.save(options.json)


def _line(series: Series) -> str:
    case = ", ".join(f"{name} {value}" for name, value in series.case.items())
    figures = (series.p50, series.p99)
    p50, p99 = (amount(figure, series.unit) for figure in figures)
    name = f"{series.subject}: {series.measure}"
    return f"{name:36} {series.contender:42} {case:48} p50 {p50:>9}  p99 {p99:>9}"


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("--quick", action="store_true", help="about two minutes")
    parser.add_argument(
        "--only", action="append", choices=SUBJECTS, help="one subject; may be repeated"
    )
    parser.add_argument("--json", type=Path, help="where to keep what was measured")
    parser.add_argument("--dsn", help="a server of yours instead of a throw-away one")
    return parser


if __name__ == "__main__":
    main()
