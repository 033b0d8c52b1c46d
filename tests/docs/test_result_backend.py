"""The result backend, turned on by a prefix."""

from .reader import Reader

PAGE = "docs/how-to/result-backend.md"


def test_result_backend(reader: Reader) -> None:
    """Every task can be awaited, and Celery's own abort is not lost."""
    reader.settings["result_backend"] = reader.dsn.replace(
        "postgresql", "aioabort+postgresql", 1
    )
    reader.follow()
