"""A task that belongs to any app, in a module that is imported once."""

from celery import shared_task
from marks import note, until

from aioabort import AbortableTask


@shared_task(bind=True, base=AbortableTask)
def shared(self: AbortableTask, place: str) -> None:
    """Stop by the exception."""
    note(place, "body")
    until(self.raise_if_aborted)
