"""The result backend of our own, turned on by a prefix."""

from .reader import Reader

PAGE = "docs/how-to/backend.md"


def test_backend(reader: Reader) -> None:
    """Any task is awaited, and Celery's own abort is not lost."""
    reader.settings["result_backend"] = reader.dsn.replace(
        "postgresql", "aioabort+postgresql", 1
    )
    reader.follow()
