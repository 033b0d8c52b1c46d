"""``abort``: ask tasks to stop."""

import click
from celery import Celery

from aioabort.cli import words
from aioabort.cli.running import Answer, Exit, command
from aioabort.producer.client import AbortClient
from aioabort.records import AbortReceipt


@command("abort")
@click.argument("task_ids", nargs=-1, required=True)
@click.option("--reason", help="Why; the task and its result carry it.")
@click.option("--by", "requested_by", help="Who asks.")
@click.option(
    "--grace", type=float, help="Seconds after which a task that still runs is killed."
)
async def abort(
    app: Celery,
    task_ids: tuple[str, ...],
    *,
    reason: str | None,
    requested_by: str | None,
    grace: float | None,
) -> Answer:
    """Ask tasks to stop."""
    async with AbortClient(app) as client:
        receipts = [
            await client.abort(
                task_id, reason=reason, requested_by=requested_by, grace=grace
            )
            for task_id in task_ids
        ]
    all_asked = all(receipt.is_requested for receipt in receipts)
    return Answer(receipts, map(line, receipts), Exit.DONE if all_asked else Exit.NO)


def line(receipt: AbortReceipt) -> str:
    """Return what the receipt says."""
    answer: str = receipt.answer.replace("_", " ")
    if receipt.answer == "finished":
        answer += f" before: {receipt.state}"
    elif receipt.answer == "requested_before" and receipt.request is not None:
        answer += f", {words.origin(receipt.request)}"
    return f"{words.printable(receipt.task_id)}  {answer}"
