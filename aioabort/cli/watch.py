"""``watch``: the latest requests, or the tasks that are named, as they change."""

from functools import partial
from typing import Any

import anyio
import click
from celery import Celery

from aioabort.cli import listing, status
from aioabort.cli.running import Exit, json_option, run_to_end
from aioabort.cli.views import Row, View, open_view
from aioabort.producer.client import AbortClient


@click.command("watch")
@click.argument("task_ids", metavar="[ID]…", nargs=-1)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="At most so many requests.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two looks at the requests.",
)
@json_option
@click.pass_context
def watch(context: click.Context, /, *, as_json: bool, **options: Any) -> None:
    """Watch requests, or tasks until they end.

    Without ids, it is the latest requests to abort, until Ctrl-C. On a terminal a table
    that is kept up to date, if rich is installed; elsewhere and with --json, a line for
    each change.
    """
    context.exit(run_to_end(partial(_watch, context.obj.app, as_json, **options)))


async def _watch(
    app: Celery,
    as_json: bool,  # noqa: FBT001
    *,
    task_ids: tuple[str, ...],
    limit: int,
    interval: float,
) -> Exit:
    heading = status.HEADING if task_ids else listing.HEADING
    async with AbortClient(app) as client:
        with open_view(heading, as_json=as_json) as view:
            if task_ids:
                await _follow_tasks(client, view, task_ids)
            else:
                await _follow_requests(client, view, limit, interval)
    return Exit.DONE


async def _follow_requests(
    client: AbortClient, view: View, limit: int, interval: float
) -> None:
    while True:
        requests = await client.requests(limit=limit)
        view.show(
            Row(request.task_id, request, listing.cells(request))
            for request in requests
        )
        await anyio.sleep(interval)


async def _follow_tasks(
    client: AbortClient, view: View, task_ids: tuple[str, ...]
) -> None:
    rows: dict[str, Row] = {}

    async def follow(task_id: str) -> None:
        async for snapshot in client.watch(task_id):
            rows[task_id] = Row(task_id, status.facts(snapshot), status.cells(snapshot))
            view.show(rows.values())

    async with anyio.create_task_group() as group:
        for task_id in dict.fromkeys(task_ids):
            group.start_soon(follow, task_id)
