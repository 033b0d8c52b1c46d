"""The answers that have an example."""

from .reader import Reader

PAGE = "docs/faq.md"


def test_answers(reader: Reader) -> None:
    """An unknown id is accepted, a saved group's refused, and a task may refuse."""
    reader.settings["result_backend"] = reader.dsn.replace(
        "postgresql", "aioabort+postgresql", 1
    )
    reader.follow()
