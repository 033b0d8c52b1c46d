"""``python -m aioabort.demo``: signals, missing packages, and the exit status."""

import signal
import sys
from importlib.util import find_spec
from typing import cast

from aioabort.demo import DemoError, UnusableOption
from aioabort.demo.arguments import Options, parse

#: The exit status that shells use for a program that Ctrl-C ended.
INTERRUPTED = 130


def main() -> int:
    """Run the demo and return its exit status."""
    options = parse()
    _end_cleanly_on_signals()
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception as raised:
        if (error := _demo_error(raised)) is None:
            raise
        print(f"aioabort.demo: {error}", file=sys.stderr)
        return error.exit_status


def _end_cleanly_on_signals() -> None:
    """Turn SIGTERM and SIGHUP into Ctrl-C, which stops the server and the worker."""

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    # A shell makes background processes ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)


def _run(options: Options) -> int:
    # Checked only here, so that --help works without these packages.
    needed = ("psycopg", "rich", "sqlalchemy", "starlette", "uvicorn")
    missing = [name for name in needed if not find_spec(name)]
    if missing:
        raise UnusableOption(
            f"{', '.join(missing)} are not installed: run `pip install aioabort[demo]`"
        )
    from aioabort.demo.session import run  # noqa: PLC0415

    return 0 if run(options) else 1


def _demo_error(raised: Exception) -> DemoError | None:
    """Return the DemoError in *raised*, which task groups may have wrapped."""
    if isinstance(raised, ExceptionGroup):
        group = cast("ExceptionGroup[Exception]", raised)
        found = map(_demo_error, group.exceptions)
        return next(filter(None, found), None)
    return raised if isinstance(raised, DemoError) else None


if __name__ == "__main__":
    sys.exit(main())
