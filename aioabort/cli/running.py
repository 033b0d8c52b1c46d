"""How a command runs: on a loop of its own, with one line for what goes wrong."""

import functools
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any, cast

import anyio
import click
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from aioabort.exceptions import AioabortError, InvalidRequest, StoreUnavailable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

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


def command(
    name: str,
) -> Callable[[Callable[..., Awaitable[Answer]]], click.Command]:
    """Make a coroutine function a command; it gets the app, and its own options."""

    def decorate(act: Callable[..., Awaitable[Answer]]) -> click.Command:
        @functools.wraps(act)
        def run(*, as_json: bool, **options: Any) -> None:
            context = click.get_current_context()
            app = cast("Celery", context.obj.app)

            async def answer() -> Exit:
                return _print(await act(app, **options), as_json)

            context.exit(run_to_end(answer))

        return click.command(name)(json_option(run))

    return decorate


def json_option(function: Callable[..., None]) -> Callable[..., None]:
    """Add the option that every command has."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def run_to_end(act: Callable[[], Awaitable[Exit]]) -> Exit:
    """Run *act* on a loop; tell in one line what ends it, if it does not end itself."""
    # What they log, the command reports; handlers of the app's own still get it.
    for noisy in ("aioabort", "asyncio"):
        logging.getLogger(noisy).addHandler(logging.NullHandler())
    try:
        return anyio.run(act)
    except KeyboardInterrupt:
        return fail("interrupted", Exit.INTERRUPTED)
    except BrokenPipeError:
        raise  # whoever reads the output has seen enough: click ends quietly
    except Exception as error:
        logger.debug("aioabort: the command failed", exc_info=True)
        cause = _first(error)
        return fail(_describe(cause), _code_of(cause))


def _print(answer: Answer, as_json: bool) -> Exit:  # noqa: FBT001
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
        return facts_of(value)
    return str(value)


def facts_of(record: "DataclassInstance") -> dict[str, object]:
    """Return the fields of a dataclass that are facts, by their names."""
    # What is not compared is none: the client of a receipt.
    names = (field.name for field in fields(record) if field.compare)
    return {name: getattr(record, name) for name in names}


def fail(problem: str, code: Exit) -> Exit:
    """Tell in one line what is wrong; return *code*."""
    click.echo(f"Error: {problem}", err=True)
    return code


def _first(error: Exception) -> Exception:
    """Return the error that a group begins with."""
    while isinstance(error, ExceptionGroup):
        error = cast("Exception", error.exceptions[0])
    return error


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
