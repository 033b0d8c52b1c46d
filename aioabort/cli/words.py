"""Requests in a few words, for a terminal."""

from collections.abc import Iterator, Sequence

from aioabort.cli.moments import age
from aioabort.records import AbortRequest


def origin(request: AbortRequest) -> str:
    """Return when, by whom and why."""
    by = f" by {request.requested_by}" if request.requested_by else ""
    why = f": {request.reason}" if request.reason else ""
    return printable(f"{age(request.requested_at)} ago{by}{why}")


def fate(request: AbortRequest) -> str:
    """Return what became of the request so far."""
    if request.outcome is not None:
        return request.outcome
    return "pending" if request.seen_at is None else "seen"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the rows, the first of which is the heading, in columns."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def printable(text: str) -> str:
    """Return *text* without what a terminal would obey: reasons come from anybody."""
    return "".join(c if c.isprintable() else " " for c in text)
