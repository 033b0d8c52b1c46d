"""A table on a terminal that is kept up to date, by rich."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager

from rich.live import Live
from rich.table import Table
from rich.text import Text

from aioabort.cli.views import Row
from aioabort.cli.words import printable


class LiveTable:
    """Draws all rows anew whenever they are shown."""

    def __init__(self, live: Live, heading: tuple[str, ...]) -> None:
        self._live = live
        self._heading = heading

    def show(self, rows: Iterable[Row]) -> None:
        """Draw them."""
        table = Table(*self._heading, box=None, pad_edge=False)
        for row in rows:
            # As text: rich would take brackets in a reason for markup.
            table.add_row(*(Text(printable(cell)) for cell in row.cells))
        self._live.update(table, refresh=True)


@contextmanager
def live_table(heading: tuple[str, ...]) -> Generator[LiveTable]:
    """Keep a table in place until the block ends; its last state stays."""
    with Live(auto_refresh=False) as live:
        yield LiveTable(live, heading)
