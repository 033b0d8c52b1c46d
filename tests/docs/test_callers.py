"""Callers without an event loop, without a client, and with a pool of their own."""

from .reader import Reader

PAGE = "docs/how-to/callers.md"


def test_callers(reader: Reader) -> None:
    """Each of them aborts its task."""
    reader.replaced["postgresql://postgres@localhost/postgres"] = reader.dsn
    reader.follow()
