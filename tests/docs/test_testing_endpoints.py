"""A user's own tests of endpoints, as the page shows them."""

from .reader import Reader

PAGE = "docs/how-to/testing-endpoints.md"


def test_tests(reader: Reader) -> None:
    """They pass, with the broker and the PostgreSQL that they bring themselves."""
    reader.settings.clear()
    reader.follow()
