"""The two ways in which ``watch`` shows changing rows: a live table, or lines."""

import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

import click

from aioabort.cli.command import dump_json
from aioabort.cli.formatting import printable
from aioabort.serialization import Json

if TYPE_CHECKING:
    from rich.live import Live


@dataclass(frozen=True, slots=True)
class WatchedRow:
    """A task or an abort request, in JSON and as the cells of a table."""

    task_id: str
    json: Json
    cells: tuple[str, ...]


class WatchView(Protocol):
    """Shows the rows of ``watch``."""

    def show(self, rows: Iterable[WatchedRow]) -> None:
        """Show the current state of all rows."""
        ...


class LineView:
    """Prints one line for each new or changed row."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._printed: dict[str, Json] = {}

    def show(self, rows: Iterable[WatchedRow]) -> None:
        """Print the rows that have changed since the last call."""
        for row in rows:
            if self._printed.get(row.task_id) != row.json:
                self._printed[row.task_id] = row.json
                click.echo(self._format(row))

    def _format(self, row: WatchedRow) -> str:
        if self._as_json:
            return dump_json(row.json)
        return "  ".join(printable(cell) for cell in row.cells if cell)


class TableView:
    """Redraws one table in place, with rich."""

    def __init__(self, live: "Live", heading: tuple[str, ...]) -> None:
        self._live = live
        self._heading = heading

    def show(self, rows: Iterable[WatchedRow]) -> None:
        """Redraw the table with *rows*."""
        from rich.table import Table  # noqa: PLC0415 (rich is optional)
        from rich.text import Text  # noqa: PLC0415

        table = Table(*self._heading, box=None, pad_edge=False)
        for row in rows:
            # Text, because rich would take brackets in a reason for markup.
            table.add_row(*(Text(printable(cell)) for cell in row.cells))
        self._live.update(table, refresh=True)


@contextmanager
def open_view(heading: tuple[str, ...], *, as_json: bool) -> Generator[WatchView]:
    """Yield a live table if stdout is a terminal and rich is installed, or lines.

    The table's last state stays on the terminal after the block.
    """
    if as_json or not sys.stdout.isatty() or find_spec("rich") is None:
        yield LineView(as_json=as_json)
        return
    from rich.live import Live  # noqa: PLC0415 (rich is optional)

    with Live(auto_refresh=False) as live:
        yield TableView(live, heading)
