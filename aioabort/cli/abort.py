"""``abort``: ask tasks to stop, by their ids or by what they have in common."""

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import click
from anyio import create_task_group
from celery import Celery

from aioabort.cli import words
from aioabort.cli.moments import moment
from aioabort.cli.running import (
    Exit,
    facts_of,
    fail,
    in_json,
    json_option,
    run_to_end,
)
from aioabort.exceptions import InvalidRequest, WaitTimeout
from aioabort.producer.client import AbortClient
from aioabort.records import AbortReceipt, Outcome

#: How tasks have ended, by their ids, or that they have not in time.
Ends = dict[str, Outcome | WaitTimeout]


@click.command("abort")
@click.argument("task_ids", metavar="[ID]…", nargs=-1)
@click.option("--task", help="All of this name that have not ended.")
@click.option("--worker", help="All that this node runs.")
@click.option("--queue", help="All that came by this queue.")
@click.option(
    "--before",
    type=moment,
    help="All that began before a moment in ISO 8601, or longer ago than 30min, say.",
)
@click.option("--reason", help="Why; the task and its result carry it.")
@click.option("--by", "requested_by", help="Who asks.")
@click.option(
    "--grace",
    type=float,
    metavar="SECONDS",
    help="Kill what still runs after so long.",
)
@click.option(
    "--wait",
    is_flag=False,
    flag_value=math.inf,
    type=click.FloatRange(0),
    metavar="[SECONDS]",
    help="Stay until they have ended, or for so long at most, and tell how.",
)
@json_option
@click.pass_context
def abort(context: click.Context, /, *, as_json: bool, **options: Any) -> None:
    """Ask tasks to stop, by ids or by criteria.

    Those that are found meet every criterion. Criteria need result_extended, except for
    --before, and find tasks of which a state is stored: with task_track_started, those
    that run. Exit code 1: one has ended, or none was found; 5: one that was asked did
    not end in time.
    """
    context.exit(run_to_end(partial(_abort, context.obj.app, as_json, **options)))


async def _abort(
    app: Celery,
    as_json: bool,  # noqa: FBT001
    *,
    wait: float | None,
    **options: Any,
) -> Exit:
    tell = _tell_nothing if as_json else _tell
    async with AbortClient(app) as client:
        receipts = await _request(client, **options)
        for receipt in receipts:
            tell(receipt.task_id, _answer(receipt))
        if wait is None:
            ends = None
        else:
            ends = await _settle(receipts, wait if wait < math.inf else None, tell)
    if as_json:
        click.echo(in_json([_facts(receipt, ends) for receipt in receipts]))
    return _code(receipts, ends or {})


async def _request(
    client: AbortClient,
    *,
    task_ids: Sequence[str],
    task: str | None,
    worker: str | None,
    queue: str | None,
    before: datetime | None,
    **demand: Any,
) -> list[AbortReceipt]:
    criteria: dict[str, Any] = {
        "task": task,
        "worker": worker,
        "queue": queue,
        "before": before,
    }
    is_by_criteria = any(value is not None for value in criteria.values())
    if bool(task_ids) == is_by_criteria:
        raise InvalidRequest(
            "name the tasks either by ids or by --task, --worker, --queue and --before"
        )
    if task_ids:
        return await client.abort(list(dict.fromkeys(task_ids)), **demand)
    return await client.abort_where(**criteria, **demand)


async def _settle(
    receipts: Iterable[AbortReceipt],
    timeout: float | None,
    tell: Callable[[str, str], None],
) -> Ends:
    """Wait for the end of each task that is asked to stop, and tell it."""
    ends: Ends = {}

    async def follow(receipt: AbortReceipt) -> None:
        try:
            ends[receipt.task_id] = outcome = await receipt.settled(timeout)
        except WaitTimeout as error:
            ends[receipt.task_id] = error
        else:
            tell(receipt.task_id, outcome)

    async with create_task_group() as group:
        for receipt in receipts:
            if receipt.is_requested:
                group.start_soon(follow, receipt)
    return ends


def _tell(task_id: str, text: str) -> None:
    click.echo(f"{words.printable(task_id)}  {text}")


def _tell_nothing(_task_id: str, _text: str) -> None:
    """Leave it all to the JSON at the end."""


def _answer(receipt: AbortReceipt) -> str:
    if receipt.answer == "finished":
        return f"finished before: {receipt.state}"
    if receipt.answer == "requested_before" and receipt.request is not None:
        return f"requested before, {words.origin(receipt.request)}"
    return receipt.answer.replace("_", " ")


def _facts(receipt: AbortReceipt, ends: Ends | None) -> dict[str, object]:
    """Return what a receipt says, and how its task ended if that was waited for."""
    facts = facts_of(receipt)
    if ends is not None:
        end = ends.get(receipt.task_id)
        facts["outcome"] = None if isinstance(end, WaitTimeout) else end
    return facts


def _code(receipts: Sequence[AbortReceipt], ends: Ends) -> Exit:
    known = (ends.get(receipt.task_id) for receipt in receipts)
    late = [end for end in known if isinstance(end, WaitTimeout)]
    if len(late) == 1:
        return fail(str(late[0]), Exit.LATE)
    if late:
        return fail(f"{len(late)} tasks did not end, the first: {late[0]}", Exit.LATE)
    all_asked = all(receipt.is_requested for receipt in receipts)
    return Exit.DONE if receipts and all_asked else Exit.NO
