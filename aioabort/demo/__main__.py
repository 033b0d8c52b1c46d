"""``python -m aioabort.demo``: what goes in, and the status that comes out."""

import signal
import sys
from importlib.util import find_spec
from typing import cast

from aioabort.demo.arguments import Options, parse
from aioabort.demo.errors import DemoError, Unusable

#: The status of a program that Ctrl-C ended, as shells have it.
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
        return error.status


def _end_cleanly_on_signals() -> None:
    """Have whoever ends us by a signal end the server and the worker, too."""

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    # A shell may have us ignore it, in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGHUP, interrupt)


def _run(options: Options) -> int:
    # Found out before they are imported; --help works without them.
    needed = ("psycopg", "rich", "sqlalchemy", "starlette", "uvicorn")
    missing = [name for name in needed if not find_spec(name)]
    if missing:
        raise Unusable(
            f"{', '.join(missing)} cannot be imported: run `pip install aioabort[demo]`"
        )
    from aioabort.demo.session import run  # noqa: PLC0415

    return 0 if run(options) else 1


def _demo_error(raised: Exception) -> DemoError | None:
    """Return our error, out of the task groups that it may have passed."""
    if isinstance(raised, ExceptionGroup):
        group = cast("ExceptionGroup[Exception]", raised)
        found = map(_demo_error, group.exceptions)
        return next(filter(None, found), None)
    return raised if isinstance(raised, DemoError) else None


if __name__ == "__main__":
    sys.exit(main())
