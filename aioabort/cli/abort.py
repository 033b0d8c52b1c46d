"""``abort``: ask tasks to stop, by their ids or by what they have in common."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import click
from celery import Celery

from aioabort.cli import words
from aioabort.cli.moments import moment
from aioabort.cli.running import Answer, Exit, command
from aioabort.exceptions import InvalidRequest
from aioabort.producer.client import AbortClient
from aioabort.records import AbortReceipt


@command("abort")
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
    "--grace", type=float, help="Seconds after which a task that still runs is killed."
)
async def abort(
    app: Celery,
    *,
    task_ids: tuple[str, ...],
    task: str | None,
    worker: str | None,
    queue: str | None,
    before: datetime | None,
    **demand: Any,
) -> Answer:
    """Ask tasks to stop: those of the ids, or all that meet every criterion.

    Criteria need result_extended, except for --before, and find tasks of which a state
    is stored: with task_track_started, those that run. Exit code 1: one has ended, or
    none was found.
    """
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
    async with AbortClient(app) as client:
        if task_ids:
            receipts = await client.abort(list(task_ids), **demand)
        else:
            receipts = await client.abort_where(**criteria, **demand)
    all_asked = all(receipt.is_requested for receipt in receipts)
    code = Exit.DONE if receipts and all_asked else Exit.NO
    return Answer(receipts, lines(receipts), code)


def lines(receipts: Iterable[AbortReceipt]) -> Iterator[str]:
    """Yield what each receipt says."""
    for receipt in receipts:
        yield f"{words.printable(receipt.task_id)}  {_answer(receipt)}"


def _answer(receipt: AbortReceipt) -> str:
    if receipt.answer == "finished":
        return f"finished before: {receipt.state}"
    if receipt.answer == "requested_before" and receipt.request is not None:
        return f"requested before, {words.origin(receipt.request)}"
    return receipt.answer.replace("_", " ")
