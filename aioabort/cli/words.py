"""Requests and moments in a few words, for a terminal."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from aioabort.records import AbortRequest

_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def age(moment: datetime) -> str:
    """Return how long ago *moment* was, in its largest unit."""
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    unit, size = next((unit for unit in _UNITS if seconds >= unit[1]), _UNITS[-1])
    return f"{seconds // size} {unit}"


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


def joined(*parts: str | None) -> str:
    """Return the parts that there are, parted by commas."""
    return ", ".join(part for part in parts if part)
