"""``watch``: follow the latest abort requests, or the tasks with the given ids."""

from functools import partial
from typing import Any

import anyio
import click
from celery import Celery

from aioabort.cli import list_requests, status
from aioabort.cli.command import ExitCode, SecondsRange, json_option, run_command
from aioabort.cli.views import WatchedRow, WatchView, open_view
from aioabort.client.client import AbortClient
from aioabort.serialization import serialize


@click.command("watch")
@click.argument("task_ids", metavar="[ID]…", nargs=-1)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Maximum number of abort requests.",
)
@click.option(
    "--interval",
    type=SecondsRange(0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two queries for abort requests.",
)
@json_option
@click.pass_context
def watch(context: click.Context, /, *, as_json: bool, **options: Any) -> None:
    """Follow abort requests, or tasks until they end.

    Without ids, follow the latest abort requests until Ctrl-C. On a terminal, and if
    rich is installed, redraw a table. Otherwise, or with --json, print a line for each
    change.
    """
    app = context.obj.app
    context.exit(run_command(app, partial(_watch, app, as_json, **options)))


async def _watch(
    app: Celery,
    as_json: bool,  # noqa: FBT001
    *,
    task_ids: tuple[str, ...],
    limit: int,
    interval: float,
) -> ExitCode:
    heading = status.HEADING if task_ids else list_requests.HEADING
    async with AbortClient(app) as client:
        with open_view(heading, as_json=as_json) as view:
            if task_ids:
                await _follow_tasks(client, view, task_ids)
            else:
                await _follow_requests(client, view, limit, interval)
    return ExitCode.DONE


async def _follow_requests(
    client: AbortClient, view: WatchView, limit: int, interval: float
) -> None:
    while True:
        requests = await client.requests(limit=limit)
        view.show(
            WatchedRow(
                request.task_id, serialize(request), list_requests.cells(request)
            )
            for request in requests
        )
        await anyio.sleep(interval)


async def _follow_tasks(
    client: AbortClient, view: WatchView, task_ids: tuple[str, ...]
) -> None:
    rows: dict[str, WatchedRow] = {}

    async def follow(task_id: str) -> None:
        async for snapshot in client.watch(task_id):
            rows[task_id] = WatchedRow(
                task_id, status.without_result(snapshot), status.cells(snapshot)
            )
            view.show(rows.values())

    async with anyio.create_task_group() as group:
        for task_id in dict.fromkeys(task_ids):
            group.start_soon(follow, task_id)
