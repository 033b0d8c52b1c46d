"""All modes in which a task is stopped."""

from .reader import Reader

PAGE = "docs/how-to/stop-modes.md"


def test_stop_modes(reader: Reader) -> None:
    """Each task of the page ends as the page says."""
    # A kill is one of Celery's own remote commands.
    reader.settings["worker_enable_remote_control"] = True
    reader.follow()
