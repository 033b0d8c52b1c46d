"""The commands of the page, and the log lines that it explains."""

import re

from .pages import PAGES, ROOT
from .reader import Reader

PAGE = "docs/how-to/operations.md"


def test_commands(reader: Reader) -> None:
    """Each command prints what the page shows."""
    reader.follow()


def test_log_lines() -> None:
    """Each line that the page explains is one that the code logs."""
    code = "".join(path.read_text() for path in ROOT.glob("aioabort/**/*.py"))
    messages = re.sub(r'"\s*\n\s*"', "", code).replace(
        '"%s: %s answers again", self._user, self.server', "PostgreSQL answers again"
    )
    table = PAGES[PAGE].read_text().partition("## Log lines")[2]
    lines = re.findall(r"^\| `aioabort worker: (.*)` \|", table, re.MULTILINE)

    assert len(lines) == 9
    for line in lines:
        pieces = [piece for piece in line.split("…") if len(piece.strip()) > 2]
        # What is logged is put together from a name, a message and what went wrong.
        assert all(piece.strip("; ") in messages for piece in pieces), line
