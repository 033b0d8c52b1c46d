"""Results that are awaited, one and many."""

from .reader import Reader

PAGE = "docs/how-to/awaiting-results.md"


def test_awaiting_results(reader: Reader) -> None:
    """Each program gets the results that it awaits."""
    reader.follow()
