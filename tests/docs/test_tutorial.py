"""The tutorial, from an empty folder to an aborted task."""

from .reader import Reader

PAGE = "docs/tutorial.md"


def test_tutorial(reader: Reader) -> None:
    """Whoever does what it says sees what it shows."""
    reader.follow()
