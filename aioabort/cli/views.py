"""How rows that change are shown: as a live table, or line by line."""

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import click

from aioabort.cli.running import in_json
from aioabort.cli.words import printable


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that is watched: what JSON gets of it, and its cells of the table."""

    key: str
    facts: object
    cells: tuple[str, ...]


class View(Protocol):
    """What the rows are shown on."""

    def show(self, rows: Iterable[Row]) -> None:
        """Show the rows as they are now."""
        ...


class Lines:
    """Prints a line for each row that is new or has changed."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._known: dict[str, object] = {}

    def show(self, rows: Iterable[Row]) -> None:
        """Print what is not known yet."""
        for row in rows:
            if self._known.get(row.key) != row.facts:
                self._known[row.key] = row.facts
                click.echo(self._line(row))

    def _line(self, row: Row) -> str:
        if self._as_json:
            return in_json(row.facts)
        return "  ".join(printable(cell) for cell in row.cells if cell)


def open_view(
    heading: tuple[str, ...], *, as_json: bool
) -> AbstractContextManager[View]:
    """Show rows in a live table, if there is a terminal, and rich to draw it."""
    if as_json or not sys.stdout.isatty():
        return nullcontext(Lines(as_json=as_json))
    try:
        from aioabort.cli.live import live_table  # noqa: PLC0415 (needs rich)
    except ImportError:
        return nullcontext(Lines(as_json=False))
    return live_table(heading)
