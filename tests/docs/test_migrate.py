"""From celery.contrib.abortable: what is lost, and what one import changes."""

from .reader import Reader

PAGE = "docs/how-to/migrate.md"


def test_migration(reader: Reader) -> None:
    """The old import loses the abort of a queued task; the new one hears old producers."""
    reader.follow()
