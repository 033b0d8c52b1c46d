"""Many tasks, and all that a workflow consists of."""

from .reader import Reader

PAGE = "docs/how-to/many.md"


def test_many(reader: Reader) -> None:
    """One call asks them all."""
    reader.follow()
