"""The progress of the runs: lines, or bars on a terminal."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Protocol

import anyio
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from aioabort.demo.runs import DemoRun

#: Seconds between two updates.
INTERVAL = 0.1

#: Progress lines per library, without a terminal.
LINES = 4


class Display(Protocol):
    """Shows the progress."""

    def say(self, text: str) -> None:
        """Announce the next step."""
        ...

    async def follow(self, name: str, runs: Sequence[DemoRun], files: int) -> None:
        """Show *runs*, each of *files* files, until cancelled."""
        ...


class PlainDisplay:
    """Prints lines, for a file or a pipe."""

    def say(self, text: str) -> None:
        """Announce the next step."""
        print(text, flush=True)

    async def follow(self, name: str, runs: Sequence[DemoRun], files: int) -> None:  # noqa: ARG002
        """Print a line each time another quarter of *runs* has ended."""
        printed = 0
        try:
            while True:
                await anyio.sleep(INTERVAL)
                if (part := _over(runs) * LINES // len(runs)) > printed:
                    printed = part
                    self._print(name, runs)
        finally:
            if printed < LINES:
                self._print(name, runs)

    def _print(self, name: str, runs: Sequence[DemoRun]) -> None:
        self.say(f"{name}: {_over(runs)} of {len(runs)} runs, {_verdicts(runs)}")


class LiveDisplay:
    """Draws bars on a terminal: one for all runs, and one for each running run."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, text: str) -> None:
        """Announce the next step."""
        self._console.print(text, style="dim", highlight=False)

    async def follow(self, name: str, runs: Sequence[DemoRun], files: int) -> None:
        """Update the bars until cancelled; then only the first bar stays."""
        with _bars(self._console) as progress:
            total = progress.add_task(name, total=len(runs), note="")
            shown: dict[int, TaskID] = {}
            try:
                while True:
                    _show_running(progress, shown, runs, files)
                    progress.update(total, completed=_over(runs), note=_verdicts(runs))
                    await anyio.sleep(INTERVAL)
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
    progress: Progress, shown: dict[int, TaskID], runs: Sequence[DemoRun], files: int
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


def _over(runs: Sequence[DemoRun]) -> int:
    return sum(run.is_over for run in runs)


def _verdicts(runs: Sequence[DemoRun]) -> str:
    verdicts = [run.verdict for run in runs if run.is_over]
    return f"{verdicts.count('honoured')} honoured, {verdicts.count('lost')} lost"
