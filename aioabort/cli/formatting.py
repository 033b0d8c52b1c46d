"""How the commands read ages, and print ages, abort requests and tables."""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import click

from aioabort.models import AbortRequest

#: Units of an age in seconds, the largest first.
UNITS: Final = {"d": 86_400, "h": 3_600, "min": 60, "s": 1}


def parse_moment(text: str) -> datetime:
    """Parse a date in ISO 8601 (local time by default), or an age such as 30min."""
    age = re.fullmatch(rf"(\d{{1,6}}) ?({'|'.join(UNITS)})", text)
    if age:
        seconds = int(age[1]) * UNITS[age[2]]
        return datetime.now(UTC) - timedelta(seconds=seconds)
    try:
        return datetime.fromisoformat(text).astimezone()
    except (OverflowError, ValueError):
        raise click.BadParameter(
            f"{text!r} is neither a date in ISO 8601 nor an age such as 30min"
        ) from None


def format_age(moment: datetime) -> str:
    """Return the time since *moment* in the largest unit that fits."""
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    unit = next((unit for unit, size in UNITS.items() if seconds >= size), "s")
    return f"{seconds // UNITS[unit]} {unit}"


def format_origin(request: AbortRequest) -> str:
    """Return the age of *request*, who made it and why."""
    by = f" by {request.requested_by}" if request.requested_by else ""
    why = f": {request.reason}" if request.reason else ""
    return printable(f"{format_age(request.requested_at)} ago{by}{why}")


def format_progress(request: AbortRequest) -> str:
    """Return the outcome of *request*; before it has one, "seen" or "pending"."""
    if request.outcome is not None:
        return request.outcome
    return "pending" if request.seen_at is None else "seen"


def format_table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield *rows* as lines with aligned columns; the first row is the heading."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def printable(text: str) -> str:
    """Replace control characters: a terminal would obey those in a user's reason."""
    return "".join(c if c.isprintable() else " " for c in text)
