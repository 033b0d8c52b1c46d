"""A user's own tests, as the page shows them."""

from .reader import Reader

PAGE = "docs/how-to/testing-tasks.md"


def test_testing_tasks(reader: Reader) -> None:
    """They pass."""
    reader.follow()
