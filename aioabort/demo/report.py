"""The tables that the demo prints at the end, and what their words mean."""

from collections.abc import Callable, Sequence
from functools import partial

from rich import box
from rich.console import Console
from rich.table import Table

from aioabort.demo.libraries import LIBRARIES
from aioabort.demo.measurement import Measurement
from aioabort.demo.runs import AbortMoment
from aioabort.demo.summary import Summary
from aioabort.demo.tasks import UPDATE_INTERVAL

CAPTION = """\
Runs were aborted while queued, on ETA, just started, mid-way and between progress \
updates. requested: abort() returned while the run could still stop. honoured: the body \
never ran, or stopped when a check returned True. lost: the body ran to its end, with a \
check after abort() had returned. The bodies record this themselves; Celery's states are \
not used. Times are from abort()'s return to the end of a running body. Both libraries \
index the same files, and have the same abort moments, checks (one per file), progress \
updates (every {interval} files) and settings (task_track_started is on). Between two \
files, the task rests: with aioabort in abort_token.wait(), which an abort ends, and \
otherwise in time.sleep().\
"""

MEASUREMENTS_CAPTION = """\
Medians. The two libraries take turns on the same worker and server. seen: a check \
returned True, in a task that waits half a millisecond between two checks, or spins \
without a pause; abort() of celery.contrib.abortable returns long after the abort is \
stored. awaited: get() in a thread, or await wait(), returned. No-op tasks are all \
queued before the first begins, and timed by the date_done of their results.\
"""

#: Values from here on are shown without decimals.
MANY = 10

Cell = Callable[[Summary], str]


def print_summaries(console: Console, summaries: Sequence[Summary]) -> None:
    """Print the table of ``--compare``."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for summary in summaries:
        table.add_column(summary.library, justify="right")
    for label, cell in _rows(summaries).items():
        table.add_row(label, *map(cell, summaries))
    console.print(table)
    console.print(
        CAPTION.format(interval=UPDATE_INTERVAL), style="dim", highlight=False
    )


def _rows(summaries: Sequence[Summary]) -> dict[str, Cell]:
    unit = summaries[0].unit
    rows: dict[str, Cell] = {
        "aborts requested": lambda s: f"{s.count_aborts()}",
        "honoured": lambda s: f"{s.count('honoured')}",
        "lost": lambda s: f"{s.count('lost')}",
        **{f"  {moment.value}": partial(_lost_at, moment) for moment in AbortMoment},
        "requested too late": lambda s: f"{s.count('too late')}",
        "failed": lambda s: f"{s.count('failed')}",
        "abort() to stop, p50": lambda s: duration(s.stopped_after(50)),
        "abort() to stop, p99": lambda s: duration(s.stopped_after(99)),
        "abort() itself, p50": lambda s: duration(s.abort_took),
        "one check": lambda s: duration(s.check),
        "  of Event.is_set()": lambda s: f"{s.check / s.is_set:,.1f} x",
        f"database {unit} per run": lambda s: f"{s.statements:,.0f}",
    }
    if not any(s.count("too late") for s in summaries):
        del rows["requested too late"]
    if not any(s.count("failed") for s in summaries):
        del rows["failed"]
    return rows


def _lost_at(moment: AbortMoment, summary: Summary) -> str:
    return f"{summary.count('lost', moment=moment)} of {summary.count_aborts(moment)}"


def print_measurements(console: Console, rows: Sequence[Measurement]) -> None:
    """Print the table of ``--measure``."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in (*LIBRARIES.values(), "ratio"):
        table.add_column(heading, justify="right")
    for row in rows:
        figures = (_figure(row.original, row.unit), _figure(row.ours, row.unit))
        table.add_row(row.label, *figures, _ratio(row))
    console.print(table)
    console.print(MEASUREMENTS_CAPTION, style="dim", highlight=False)


def _ratio(row: Measurement) -> str:
    """Return the ratio of the two values, or "-" if one of them is 0."""
    if not row.ours or not row.original:
        return "-"
    if row.ours * 100 < row.original:
        return f"1 / {row.original / row.ours:,.0f}"
    return f"{row.ours / row.original:.2f}"


def _figure(value: float, unit: str) -> str:
    if unit == "s":
        return duration(value)
    return f"{value:,.0f} {unit}" if value >= MANY else f"{value:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """Return *seconds* in the largest unit that fits."""
    if seconds is None:
        return "-"
    if not seconds:
        return "0"
    for factor, unit in ((1, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1:
            return f"{seconds * factor:,.3g} {unit}"
    return f"{seconds * 1e9:,.0f} ns"
