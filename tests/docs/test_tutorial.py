"""The tutorial, from an empty folder to an aborted task."""

from .reader import Reader

PAGE = "docs/tutorial.md"


def test_tutorial(reader: Reader) -> None:
    """Its commands print what it shows."""
    reader.follow()
