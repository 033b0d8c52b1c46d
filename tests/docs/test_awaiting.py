"""Tasks that are awaited, one and many."""

from .reader import Reader

PAGE = "docs/how-to/awaiting.md"


def test_awaiting(reader: Reader) -> None:
    """Each program hears of the ends that it awaits."""
    reader.follow()
