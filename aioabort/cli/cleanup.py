"""``cleanup``: delete expired abort requests."""

from celery import Celery

from aioabort.cli.command import CommandOutput, command
from aioabort.client.client import AbortClient


@command("cleanup")
async def cleanup(app: Celery) -> CommandOutput:
    """Delete abort requests older than aioabort_request_expires."""
    async with AbortClient(app) as client:
        deleted = await client.cleanup()
    return CommandOutput({"deleted": deleted}, [f"{deleted} abort requests deleted"])
