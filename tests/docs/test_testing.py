"""A user's own tests, as the page shows them."""

from .reader import Reader

PAGE = "docs/how-to/testing.md"


def test_tests(reader: Reader) -> None:
    """They pass."""
    reader.follow()
