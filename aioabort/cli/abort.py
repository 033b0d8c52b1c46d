"""``abort``: abort tasks by id or by criteria, and wait for their outcomes."""

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import click
from anyio import create_task_group
from celery import Celery

from aioabort.cli.command import (
    ExitCode,
    SecondsRange,
    dump_json,
    json_option,
    print_error,
    run_command,
)
from aioabort.cli.formatting import format_origin, parse_moment, printable
from aioabort.client.client import AbortClient
from aioabort.exceptions import InvalidRequest, WaitTimeout
from aioabort.models import AbortReceipt, Outcome
from aioabort.serialization import Json, serialize

#: Task id -> outcome, or the timeout of the wait for it.
Outcomes = dict[str, Outcome | WaitTimeout]


@click.command("abort")
@click.argument("task_ids", metavar="[ID]…", nargs=-1)
@click.option("--task", help="Unfinished tasks of this name.")
@click.option("--worker", help="Unfinished tasks on this worker node.")
@click.option("--queue", help="Unfinished tasks from this queue.")
@click.option(
    "--before",
    type=parse_moment,
    metavar="DATE|AGE",
    help="Unfinished tasks that started before a date in ISO 8601, or longer ago than"
    " an age such as 30min.",
)
@click.option("--reason", help="Reason, stored with the abort request.")
@click.option("--by", "requested_by", help="Name of the requester.")
@click.option(
    "--grace",
    type=float,
    metavar="SECONDS",
    help="Kill tasks that still run after this time.",
)
@click.option(
    "--wait",
    is_flag=False,
    flag_value=math.inf,
    type=SecondsRange(0, math.inf),
    metavar="[SECONDS]",
    help="Wait until the tasks have ended, at most this long, and print their outcomes.",
)
@json_option
@click.pass_context
def abort(context: click.Context, /, *, as_json: bool, **options: Any) -> None:
    """Abort tasks by id, or all tasks that match the criteria.

    With several criteria, a task must match all of them. --task, --worker and --queue
    need result_extended. Criteria find only tasks with a stored state: with
    task_track_started, running tasks. Exit code 1: a task had already ended, or none
    was found; 5: a task did not end within --wait.
    """
    app = context.obj.app
    context.exit(run_command(app, partial(_abort, app, as_json, **options)))


async def _abort(
    app: Celery,
    as_json: bool,  # noqa: FBT001
    *,
    wait: float | None,
    **options: Any,
) -> ExitCode:
    print_line = _print_nothing if as_json else _print_line
    async with AbortClient(app) as client:
        receipts = await _request_aborts(client, **options)
        for receipt in receipts:
            print_line(receipt.task_id, _describe(receipt))
        if wait is None:
            outcomes = None
        else:
            timeout = wait if wait < math.inf else None
            outcomes = await _wait_for_outcomes(receipts, timeout, print_line)
    if as_json:
        click.echo(dump_json([_serialize(receipt, outcomes) for receipt in receipts]))
    return _exit_code(receipts, outcomes or {})


async def _request_aborts(
    client: AbortClient,
    *,
    task_ids: Sequence[str],
    task: str | None,
    worker: str | None,
    queue: str | None,
    before: datetime | None,
    **abort_options: Any,
) -> list[AbortReceipt]:
    criteria: dict[str, Any] = {
        "task": task,
        "worker": worker,
        "queue": queue,
        "before": before,
    }
    has_criteria = any(value is not None for value in criteria.values())
    if bool(task_ids) == has_criteria:
        raise InvalidRequest(
            "name the tasks either by ids or by --task, --worker, --queue and --before"
        )
    if task_ids:
        return await client.abort(list(dict.fromkeys(task_ids)), **abort_options)
    return await client.abort_where(**criteria, **abort_options)


async def _wait_for_outcomes(
    receipts: Iterable[AbortReceipt],
    timeout: float | None,
    print_line: Callable[[str, str], None],
) -> Outcomes:
    """Wait until each task with an abort request has ended; print each outcome."""
    outcomes: Outcomes = {}

    async def wait(receipt: AbortReceipt) -> None:
        try:
            outcomes[receipt.task_id] = outcome = await receipt.settled(timeout)
        except WaitTimeout as error:
            outcomes[receipt.task_id] = error
        else:
            print_line(receipt.task_id, outcome)

    async with create_task_group() as group:
        for receipt in receipts:
            if receipt.is_requested:
                group.start_soon(wait, receipt)
    return outcomes


def _print_line(task_id: str, text: str) -> None:
    click.echo(f"{printable(task_id)}  {text}")


def _print_nothing(_task_id: str, _text: str) -> None:
    """Print nothing: with ``--json``, one array at the end says it all."""


def _describe(receipt: AbortReceipt) -> str:
    if receipt.answer == "finished":
        return f"already finished: {receipt.state}"
    if receipt.answer == "requested_before" and receipt.request is not None:
        return f"already requested {format_origin(receipt.request)}"
    return receipt.answer.replace("_", " ")


def _serialize(receipt: AbortReceipt, outcomes: Outcomes | None) -> dict[str, Json]:
    """Return *receipt* in JSON, with the outcome if ``--wait`` was given."""
    data = serialize(receipt)
    if outcomes is not None:
        outcome = outcomes.get(receipt.task_id)
        data["outcome"] = None if isinstance(outcome, WaitTimeout) else outcome
    return data


def _exit_code(receipts: Sequence[AbortReceipt], outcomes: Outcomes) -> ExitCode:
    ended = (outcomes.get(receipt.task_id) for receipt in receipts)
    timeouts = [outcome for outcome in ended if isinstance(outcome, WaitTimeout)]
    if len(timeouts) == 1:
        return print_error(str(timeouts[0]), ExitCode.TIMEOUT)
    if timeouts:
        problem = f"{len(timeouts)} tasks did not end, the first: {timeouts[0]}"
        return print_error(problem, ExitCode.TIMEOUT)
    all_requested = all(receipt.is_requested for receipt in receipts)
    return ExitCode.DONE if receipts and all_requested else ExitCode.NO
