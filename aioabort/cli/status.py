"""``status``: the state of one task and of its abort request."""

from collections.abc import Iterator
from typing import Any

import click
from celery import Celery, states

from aioabort.cli.command import CommandOutput, ExitCode, command
from aioabort.cli.formatting import format_origin, format_progress, printable
from aioabort.client.client import AbortClient
from aioabort.models import TaskSnapshot
from aioabort.serialization import Json, serialize

HEADING = ("TASK", "STATE", "ABORT", "REQUESTED")


@command("status")
@click.argument("task_id")
async def status(app: Celery, task_id: str) -> CommandOutput:
    """Show the state of a task and its abort request.

    Exit code 1: the task is unknown, or still queued. A queued task cannot be told
    from an unknown one.
    """
    async with AbortClient(app) as client:
        snapshot = await client.snapshot(task_id)
    is_known = snapshot.state != states.PENDING or snapshot.request is not None
    code = ExitCode.DONE if is_known else ExitCode.NO
    return CommandOutput(without_result(snapshot), lines(snapshot), code)


def without_result(snapshot: TaskSnapshot[Any]) -> dict[str, Json]:
    """Return *snapshot* in JSON; a result may be large or secret, so it is left out."""
    data = serialize(snapshot)
    del data["result"], data["error"]
    return data


def cells(snapshot: TaskSnapshot[Any]) -> tuple[str, ...]:
    """Return the cells of the task's row."""
    request = snapshot.request
    return (
        snapshot.task_id,
        snapshot.state,
        format_progress(request) if request is not None else "",
        format_origin(request) if request is not None else "",
    )


def lines(snapshot: TaskSnapshot[Any]) -> Iterator[str]:
    """Yield a line for the state, and one for each stage of the abort request."""
    yield f"{printable(snapshot.task_id)}  {snapshot.state}"
    request = snapshot.request
    if request is None:
        return
    yield f"asked to stop {format_origin(request)}"
    if request.kill_at is not None and request.is_pending:
        yield f"will be killed at {request.kill_at:%Y-%m-%d %H:%M:%S %Z}"
    if request.seen_at is not None:
        seconds = (request.seen_at - request.requested_at).total_seconds()
        yield f"seen after {seconds:.3f} s by {printable(request.seen_by or '?')}"
    if request.outcome_at is not None:
        seconds = (request.outcome_at - request.requested_at).total_seconds()
        yield f"{request.outcome} after {seconds:.3f} s"
