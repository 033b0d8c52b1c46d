"""``list``: who asked which task to stop, why and when, and what became of it."""

import click
from celery import Celery

from aioabort.cli import words
from aioabort.cli.moments import age
from aioabort.cli.running import Answer, command
from aioabort.producer.client import AbortClient
from aioabort.records import AbortRequest

HEADING = ("TASK", "ASKED", "AGE", "BY", "REASON", "SEEN BY", "OUTCOME")


@command("list")
@click.option("--pending", is_flag=True, help="Only those that no task has settled.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="At most so many.",
)
async def list_requests(app: Celery, *, pending: bool, limit: int) -> Answer:
    """List the latest requests to abort, the newest first."""
    async with AbortClient(app) as client:
        requests = await client.requests(limit=limit, pending=pending)
    return Answer(requests, words.table([HEADING, *map(cells, requests)]))


def cells(request: AbortRequest) -> tuple[str, ...]:
    """Return the request as a row of the table."""
    asked_at = request.requested_at.astimezone()
    return (
        request.task_id,
        f"{asked_at:%Y-%m-%d %H:%M:%S}",
        age(request.requested_at),
        request.requested_by or "",
        request.reason or "",
        request.seen_by or "",
        words.fate(request),
    )
