"""``list``: the latest abort requests, and how far each has come."""

import click
from celery import Celery

from aioabort.cli.command import CommandOutput, command
from aioabort.cli.formatting import format_age, format_progress, format_table
from aioabort.client.client import AbortClient
from aioabort.models import AbortRequest

HEADING = ("TASK", "REQUESTED", "AGE", "BY", "REASON", "SEEN BY", "OUTCOME")


@command("list")
@click.option("--pending", is_flag=True, help="Only abort requests without an outcome.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Maximum number of abort requests.",
)
async def list_requests(app: Celery, *, pending: bool, limit: int) -> CommandOutput:
    """List the latest abort requests, newest first."""
    async with AbortClient(app) as client:
        requests = await client.requests(limit=limit, pending=pending)
    return CommandOutput(requests, format_table([HEADING, *map(cells, requests)]))


def cells(request: AbortRequest) -> tuple[str, ...]:
    """Return the cells of the request's row."""
    requested_at = request.requested_at.astimezone()
    return (
        request.task_id,
        f"{requested_at:%Y-%m-%d %H:%M:%S}",
        format_age(request.requested_at),
        request.requested_by or "",
        request.reason or "",
        request.seen_by or "",
        format_progress(request),
    )
