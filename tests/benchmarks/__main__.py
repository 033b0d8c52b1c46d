"""The command line: ``python -m tests.benchmarks [--quick] [--only NAME] [--json FILE]``."""

import argparse
import time
from importlib import import_module
from pathlib import Path

from .place import open_place

SUBJECTS = ("backend", "requesting", "stopping", "waiting")


def main() -> None:
    """Measure what was asked for, and print it."""
    options = _arguments().parse_args()
    with open_place(options.dsn, quick=options.quick) as place:
        for name in options.only or SUBJECTS:
            start = time.monotonic()
            print(f"{name} …", flush=True)
            import_module(f".{name}", __package__).measure(place)
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    for series in place.records.series:
        case = ", ".join(f"{key}={value}" for key, value in series.case.items())
        print(
            f"{series.subject:10} {series.measure:28} {series.contender:42} {case:28}"
            f" {series.p50:12.6g} {series.p99:12.6g} {series.longest:12.6g} {series.unit}"
        )
    if options.json:
        place.records.save(options.json)


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
