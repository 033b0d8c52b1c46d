"""All the ways in which a task is stopped."""

from .reader import Reader

PAGE = "docs/how-to/choose.md"


def test_ways_to_stop(reader: Reader) -> None:
    """Each task of the page ends as the page says."""
    # A kill is one of Celery's own remote commands.
    reader.settings["worker_enable_remote_control"] = True
    reader.follow()
