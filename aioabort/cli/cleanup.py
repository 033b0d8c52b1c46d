"""``cleanup``: delete the requests that have expired."""

from celery import Celery

from aioabort.cli.running import Answer, command
from aioabort.producer.client import AbortClient


@command("cleanup")
async def cleanup(app: Celery) -> Answer:
    """Delete the requests that are older than aioabort_request_expires."""
    async with AbortClient(app) as client:
        deleted = await client.cleanup()
    return Answer({"deleted": deleted}, [f"{deleted} requests deleted"])
