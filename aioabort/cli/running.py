"""How a command runs: on a loop of its own, with one line for what goes wrong."""

import functools
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, cast

import anyio
import click
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from aioabort.exceptions import AioabortError, InvalidRequest, StoreUnavailable

logger: logging.Logger = logging.getLogger(__name__)


class Exit(IntEnum):
    """The exit codes, as ``--help`` explains them."""

    DONE = 0
    NO = 1
    USAGE = 2
    REFUSED = 3
    AWAY = 4
    LATE = 5
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command prints: *facts* with ``--json``, and otherwise *lines*."""

    facts: object
    lines: Iterable[str]
    code: Exit = Exit.DONE


Act = Callable[..., Awaitable[Answer]]


def command(name: str) -> Callable[[Act], click.Command]:
    """Make a coroutine function a command; it gets the app, and its own options."""

    def decorate(act: Act) -> click.Command:
        @functools.wraps(act)
        def run(*, as_json: bool, **options: Any) -> None:
            context = click.get_current_context()
            app = cast("Celery", context.obj.app)
            context.exit(_run(functools.partial(act, app, **options), as_json))

        in_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
        return click.command(name)(in_json(run))

    return decorate


def _run(act: Act, as_json: bool) -> Exit:  # noqa: FBT001
    # What they log, the command reports; handlers of the app's own still get it.
    for noisy in ("aioabort", "asyncio"):
        logging.getLogger(noisy).addHandler(logging.NullHandler())
    try:
        answer = anyio.run(act)
    except KeyboardInterrupt:
        return _fail("interrupted", Exit.INTERRUPTED)
    except Exception as error:
        logger.debug("aioabort: the command failed", exc_info=True)
        return _fail(_describe(error), _code_of(error))
    if as_json:
        click.echo(in_json(answer.facts))
    else:
        for line in answer.lines:
            click.echo(line)
    return answer.code


def in_json(facts: object) -> str:
    """Return *facts* as JSON, in one line; moments in ISO 8601."""
    return json.dumps(facts, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return str(value)


def _fail(problem: str, code: Exit) -> Exit:
    click.echo(f"Error: {problem}", err=True)
    return code


def _code_of(error: Exception) -> Exit:
    if isinstance(error, StoreUnavailable):
        return Exit.AWAY
    if isinstance(error, InvalidRequest | ImproperlyConfigured):
        return Exit.USAGE
    return Exit.REFUSED


def _describe(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "")
    if isinstance(error, AioabortError | ImproperlyConfigured):
        return line
    return f"{type(error).__name__}: {line}"
