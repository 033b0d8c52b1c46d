"""Moments on the command line: as themselves, or by how long ago they are."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click

#: The units of an age, in seconds, from the largest one on.
UNITS: Final = {"d": 86_400, "h": 3_600, "min": 60, "s": 1}


def moment(text: str) -> datetime:
    """Read a moment in ISO 8601, local unless it says otherwise, or an age: 30min."""
    age = re.fullmatch(rf"(\d{{1,6}}) ?({'|'.join(UNITS)})", text)
    if age:
        seconds = int(age[1]) * UNITS[age[2]]
        return datetime.now(UTC) - timedelta(seconds=seconds)
    try:
        return datetime.fromisoformat(text).astimezone()
    except (OverflowError, ValueError):
        raise click.BadParameter(
            f"{text!r} is neither a moment in ISO 8601 nor an age such as 30min"
        ) from None


def age(moment: datetime) -> str:
    """Return how long ago *moment* was, in its largest unit."""
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    unit = next((unit for unit, size in UNITS.items() if seconds >= size), "s")
    return f"{seconds // UNITS[unit]} {unit}"
