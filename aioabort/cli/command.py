"""What all commands share: the event loop, ``--json``, exit codes and error lines."""

import functools
import json
import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, cast

import anyio
import click
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from aioabort.exceptions import (
    AioabortError,
    InvalidRequest,
    ResultsElsewhere,
    StoreUnavailable,
)
from aioabort.serialization import to_json
from aioabort.timing import LONGEST

logger: logging.Logger = logging.getLogger(__name__)


class ExitCode(IntEnum):
    """The exit codes that ``celery aioabort --help`` explains."""

    DONE = 0
    NO = 1
    USAGE = 2
    REFUSED = 3
    UNREACHABLE = 4
    TIMEOUT = 5
    INTERRUPTED = 130


class SecondsRange(click.FloatRange):
    """A number of seconds, *most* at most; click's own range accepts a NaN."""

    def __init__(self, least: float, most: float = LONGEST) -> None:
        # Help would show the longest time, and no user needs it.
        super().__init__(least)
        self._most = most

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the number; fail for text, a NaN and a number out of range."""
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds) or seconds > self._most:
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds


@dataclass(frozen=True, slots=True)
class CommandOutput:
    """What a command prints: *data* with ``--json``, otherwise *lines*."""

    data: object
    lines: Iterable[str]
    exit_code: ExitCode = ExitCode.DONE


def command(
    name: str,
) -> Callable[[Callable[..., Awaitable[CommandOutput]]], click.Command]:
    """Turn a coroutine function into a command.

    The function receives the Celery app and the command's own options.
    """

    def decorate(function: Callable[..., Awaitable[CommandOutput]]) -> click.Command:
        @functools.wraps(function)
        def run(*, as_json: bool, **options: Any) -> None:
            context = click.get_current_context()
            app = cast("Celery", context.obj.app)

            async def call_and_print() -> ExitCode:
                return _print(await function(app, **options), as_json)

            context.exit(run_command(app, call_and_print))

        return click.command(name)(json_option(run))

    return decorate


def json_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add ``--json``, which every command has."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def run_command(app: Celery, function: Callable[[], Awaitable[ExitCode]]) -> ExitCode:
    """Run *function* in an event loop and return its exit code.

    An exception is printed as one line on stderr and becomes an exit code.
    """
    # Without a handler, logging would print our warnings to stderr beside the error
    # line. Handlers that the app has set up still receive them.
    for name in ("aioabort", "asyncio"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    try:
        # Django's models, which a result backend may need, are loaded with them.
        app.loader.import_default_modules()
        return anyio.run(function)
    except KeyboardInterrupt:
        return print_error("interrupted", ExitCode.INTERRUPTED)
    except BrokenPipeError:
        raise  # the reader of our output closed the pipe: click exits silently
    except Exception as error:
        logger.debug("aioabort: the command failed", exc_info=True)
        cause = _first(error)
        return print_error(_describe(cause), _exit_code_of(cause))


def dump_json(data: object) -> str:
    """Return *data* as one line of JSON."""
    return json.dumps(to_json(data))


def print_error(problem: str, code: ExitCode) -> ExitCode:
    """Print *problem* as one line on stderr; return *code*."""
    click.echo(f"Error: {problem}", err=True)
    return code


def _print(output: CommandOutput, as_json: bool) -> ExitCode:  # noqa: FBT001
    if as_json:
        click.echo(dump_json(output.data))
    else:
        for line in output.lines:
            click.echo(line)
    return output.exit_code


def _first(error: Exception) -> Exception:
    """Return the first error of a possibly nested group."""
    while isinstance(error, ExceptionGroup):
        error = cast("Exception", error.exceptions[0])
    return error


def _exit_code_of(error: Exception) -> ExitCode:
    if isinstance(error, StoreUnavailable):
        return ExitCode.UNREACHABLE
    if isinstance(error, InvalidRequest | ImproperlyConfigured | ResultsElsewhere):
        return ExitCode.USAGE
    return ExitCode.REFUSED


def _describe(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "")
    if isinstance(error, AioabortError | ImproperlyConfigured):
        return line
    return f"{type(error).__name__}: {line}"
