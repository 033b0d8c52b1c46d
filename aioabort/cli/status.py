"""``status``: what is known of one task."""

from collections.abc import Iterator
from typing import Any

import click
from celery import Celery, states

from aioabort.cli import words
from aioabort.cli.running import Answer, Exit, command
from aioabort.producer.client import AbortClient
from aioabort.records import TaskSnapshot

HEADING = ("TASK", "STATE", "ABORT", "ASKED")


@command("status")
@click.argument("task_id")
async def status(app: Celery, task_id: str) -> Answer:
    """Show the state of a task, and of the request to abort it.

    Exit code 1: it is unknown, or waits in a queue and leaves no trace there.
    """
    async with AbortClient(app) as client:
        snapshot = await client.snapshot(task_id)
    is_known = snapshot.state != states.PENDING or snapshot.request is not None
    return Answer(facts(snapshot), lines(snapshot), Exit.DONE if is_known else Exit.NO)


def facts(snapshot: TaskSnapshot[Any]) -> dict[str, object]:
    """Return what may be shown to anybody: not the result, which may be anything."""
    return {
        "task_id": snapshot.task_id,
        "state": snapshot.state,
        "is_finished": snapshot.is_finished,
        "is_aborted": snapshot.is_aborted,
        "date_done": snapshot.date_done if snapshot.is_finished else None,
        "request": snapshot.request,
    }


def cells(snapshot: TaskSnapshot[Any]) -> tuple[str, ...]:
    """Return the snapshot as a row of a table."""
    request = snapshot.request
    return (
        snapshot.task_id,
        snapshot.state,
        words.fate(request) if request is not None else "",
        words.origin(request) if request is not None else "",
    )


def lines(snapshot: TaskSnapshot[Any]) -> Iterator[str]:
    """Yield the state, and the stages of the request that it has come through."""
    yield f"{words.printable(snapshot.task_id)}  {snapshot.state}"
    request = snapshot.request
    if request is None:
        return
    yield f"asked to stop {words.origin(request)}"
    if request.kill_at is not None and request.is_pending:
        yield f"will be killed at {request.kill_at:%Y-%m-%d %H:%M:%S %Z}"
    if request.seen_at is not None:
        seconds = (request.seen_at - request.requested_at).total_seconds()
        yield f"seen after {seconds:.3f} s by {words.printable(request.seen_by or '?')}"
    if request.outcome_at is not None:
        seconds = (request.outcome_at - request.requested_at).total_seconds()
        yield f"{request.outcome} after {seconds:.3f} s"
