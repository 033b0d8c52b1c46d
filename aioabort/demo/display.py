"""What is seen of the runs while they go on, and the tables in the end."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

import anyio
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from aioabort.demo.runs import Run

#: Seconds between two looks at the runs.
LOOK = 0.1

#: Lines for the runs of a library, when there is no terminal.
LINES = 4


class Display(Protocol):
    """How the progress is told."""

    def say(self, text: str) -> None:
        """Tell what comes next."""
        ...

    async def follow(self, name: str, runs: Sequence[Run], files: int) -> None:
        """Show *runs*, of so many *files* each, until cancelled."""
        ...


class PlainDisplay:
    """Lines, for a file or a pipe."""

    def say(self, text: str) -> None:
        """Tell what comes next."""
        print(text, flush=True)

    async def follow(self, name: str, runs: Sequence[Run], files: int) -> None:  # noqa: ARG002
        """Print a line whenever another part of *runs* is over."""
        told = 0
        try:
            while True:
                await anyio.sleep(LOOK)
                if (part := _over(runs) * LINES // len(runs)) > told:
                    told = part
                    self._tell(name, runs)
        finally:
            if told < LINES:
                self._tell(name, runs)

    def _tell(self, name: str, runs: Sequence[Run]) -> None:
        self.say(f"{name}: {_over(runs)} of {len(runs)} runs, {_verdicts(runs)}")


class LiveDisplay:
    """Bars on a terminal: one for all runs, and one for each that is running."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """Tell what comes next."""
        self._console.print(text, style="dim", highlight=False)

    async def follow(self, name: str, runs: Sequence[Run], files: int) -> None:
        """Keep the bars up to date, until cancelled; only the first one stays."""
        with _bars(self._console) as progress:
            total = progress.add_task(name, total=len(runs), note="")
            shown: dict[int, TaskID] = {}
            try:
                while True:
                    _show_running(progress, shown, runs, files)
                    progress.update(total, completed=_over(runs), note=_verdicts(runs))
                    await anyio.sleep(LOOK)
            finally:
                for bar in shown.values():
                    progress.remove_task(bar)
                progress.update(total, completed=_over(runs), note=_verdicts(runs))


@contextmanager
def _bars(console: Console) -> Generator[Progress]:
    with Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:>3.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        yield progress


def _show_running(
    progress: Progress, shown: dict[int, TaskID], runs: Sequence[Run], files: int
) -> None:
    for run in runs:
        is_running = run.entry.started and not run.entry.stopped
        if not is_running:
            if (bar := shown.pop(run.number, None)) is not None:
                progress.remove_task(bar)
            continue
        if run.number not in shown:
            shown[run.number] = progress.add_task("", total=files, note="")
        progress.update(
            shown[run.number],
            description=f"  aborted {run.moment.value}",
            completed=run.entry.hashed,
            note="abort() returned" if run.returned_at else "",
        )


def _over(runs: Sequence[Run]) -> int:
    return sum(run.is_over for run in runs)


def _verdicts(runs: Sequence[Run]) -> str:
    verdicts = [run.verdict for run in runs if run.is_over]
    return f"{verdicts.count('honoured')} honoured, {verdicts.count('lost')} lost"
