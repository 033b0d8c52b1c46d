"""Tables and plots of a recorded run: ``python -m tests.benchmarks.report``.

No figure in the documentation is typed by hand: docs/explanation/benchmarks.md includes
the tables and plots, and the README has one of the tables between two comments.
"""

import argparse
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from . import backend, checking, waiting
from .figures import amount
from .peers import contrib, limit, ours
from .records import Records, Series, load, percentile
from .targets import TARGETS

FOLDER = Path("docs/benchmarks")
RECORDED = FOLDER / "recorded.json"
README = Path("README.md")

#: Where the README has its table.
IN_README = re.compile(
    r"(?<=report`. -->\n).*(?=^<!-- end of the table -->)", re.DOTALL | re.MULTILINE
)

OURS, OTHERS, LIMIT = "#1a7f5a", "#9aa5b1", "#d9a441"


def main() -> None:
    """Write the tables and plots of the recorded run."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.report")
    parser.add_argument("recorded", type=Path, nargs="?", default=RECORDED)
    records = load(parser.parse_args().recorded)
    write(records, FOLDER)
    README.write_text(with_summary(README.read_text(), records))


def with_summary(readme: str, records: Records) -> str:
    """Return the README's text with the summary of *records* in its place."""
    return IN_README.sub(lambda _: f"\n{summary(records)}\n\n", readme, count=1)


def write(records: Records, folder: Path) -> None:
    """Write a table for each subject, and the plots, into *folder*."""
    folder.mkdir(exist_ok=True)
    for name, text in {
        "about": about(records),
        "targets": targets(records),
        "checking": checks(records),
        "stopping": stops(records),
        "requesting": requests(records),
        "waiting": waits(records),
        "overhead": overheads(records),
        "backend": backends(records),
        "growth": growths(records),
    }.items():
        (folder / f"{name}.md").write_text(text + "\n")
    # Text as text, and nothing that differs from run to run.
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "aioabort"}
    _plot_waiting(records, folder / "waiting.svg")
    _plot_stopping(records, folder / "stopping.svg")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with right-aligned figures."""
    lines = ["| " + " | ".join(heads) + " |"]
    lines.append("|" + "|".join(["---", *["--:"] * (len(heads) - 1)]) + "|")
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def summary(records: Records) -> str:
    """Return the README's table: medians of aioabort and of celery.contrib.abortable."""
    prefork = {"pool": "prefork"}
    loop = prefork | {"body": ours.BODIES["loop"]}
    both = (ours.NOTIFIED, contrib.NAME)
    checks = ("aioabort: self.is_aborted()", contrib.NAME)
    aborts = (ours.NOTIFIED, contrib.DEFAULT)
    figures = {
        "one `is_aborted()`": ("checking", "one check", checks, prefork),
        "`abort()` in a web process": ("requesting", "abort()", aborts, {"ids": 1}),
        "from `abort()` until the task stops": (
            "stopping",
            "abort to stop",
            both,
            loop,
        ),
        "no-op tasks of a worker": (
            *("overhead", "no-op tasks", both),
            prefork | {"backend": "db+"},
        ),
    }
    rows = (
        (text, *(_median(records, subject, measure, name, case) for name in names))
        for text, (subject, measure, names, case) in figures.items()
    )
    return table(("", "aioabort", "celery.contrib.abortable"), rows)


def _median(
    records: Records, subject: str, measure: str, name: str, case: dict[str, Any]
) -> str:
    found = records.find(subject, measure, name, **case)
    return amount(found.p50, found.unit) if found else "-"


def about(records: Records) -> str:
    """Return the date, the machine and the versions of the run."""
    facts: dict[str, Any] = records.about
    machine, server = facts["machine"], facts["postgresql"]
    memory = machine["memory"] / 2**30
    versions = ", ".join(f"{name} {it}" for name, it in facts["versions"].items())
    rows = {
        "date": facts["date"],
        "machine": f"{machine['cores']} cores ({machine['processor']}), "
        f"{memory:.0f} GiB, {machine['system']}; server and workers share it",
        "PostgreSQL": f"{server['version']}, over TCP on the same machine; "
        + ", ".join(f"{name} {it}" for name, it in server.items() if name != "version"),
        "broker": facts["broker"],
        "versions": versions,
        "run": "quick" if facts["quick"] else "full",
    }
    lines = [
        "| | |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in rows.items()),
    ]
    return "\n".join(lines)


def targets(records: Records) -> str:
    """Return each requirement with the figure that was measured."""
    heads = ("", "required", "measured", "")
    return table(heads, (target.row(records) for target in TARGETS))


def checks(records: Records) -> str:
    """Return the table of checks, the fastest first."""
    found = records.of(checking.SUBJECT)
    events = {it.case["pool"]: it for it in found if it.contender == checking.EVENT}
    rows = [
        (
            it.contender,
            str(it.case["pool"]),
            amount(it.p50, "s"),
            amount(it.p99, "s"),
            amount(it.p50 / events.get(it.case["pool"], events["threads"]).p50, "x"),
        )
        for it in sorted(found, key=lambda it: it.p50)
    ]
    return table(("one check", "pool", "p50", "p99", "vs Event.is_set()"), rows)


def stops(records: Records) -> str:
    """Return the table of delays from abort to stop, the shortest first."""
    found = records.of("stopping")
    floor = next(it.p50 for it in found if it.contender == limit.STOP)
    rows = [
        (
            it.contender,
            str(it.case["pool"]),
            str(it.case["body"]),
            amount(it.p50, "s"),
            amount(it.p99, "s"),
            amount(it.p50 / floor, "x"),
        )
        for it in sorted(found, key=lambda it: it.p50)
    ]
    return table(("", "pool", "body", "p50", "p99", "vs the limit"), rows)


def requests(records: Records) -> str:
    """Return the table of abort requests, by their number of ids."""
    found = records.of("requesting", "abort()")
    rows = []
    for it in sorted(found, key=lambda it: (it.case["ids"], it.p50)):
        mine = records.find("requesting", "abort()", ours.NOTIFIED, ids=it.case["ids"])
        rows.append(
            (
                it.contender,
                f"{it.case['ids']:,}",
                amount(it.p50, "s"),
                amount(it.p99, "s"),
                amount(it.p50 / mine.p50, "x") if mine else "-",
            )
        )
    return table(("", "ids", "p50", "p99", "vs aioabort"), rows)


def waits(records: Records) -> str:
    """Return the table of waiters, by their number and by the rate of results."""
    heads = ("waiters", "tasks/s", "", "p50", "p99", "longest stall", "connections")
    rows = []
    found = records.of(waiting.SUBJECT, "commit to resumed")
    for it in sorted(
        found, key=lambda it: (it.case["waiters"], it.case["rate"], it.p50)
    ):

        def figure(measure: str, of: Series = it) -> str:
            found = records.find(waiting.SUBJECT, measure, of.contender, **of.case)
            return amount(found.p50, found.unit) if found else "-"

        rows.append(
            (
                f"{it.case['waiters']:,}",
                f"{it.case['rate']:,}",
                it.contender,
                amount(it.p50, "s"),
                amount(it.p99, "s"),
                *map(figure, ("longest stall", "connections", "transactions", "cpu")),
            )
        )
    return table((*heads, "transactions", "cpu"), rows)


def overheads(records: Records) -> str:
    """Return the table of the overhead of a task."""
    rows = []
    for it in records.of("overhead", "no-op tasks"):
        plain = records.find("overhead", it.measure, "celery.Task", **it.case)
        cpu = records.find("overhead", "cpu of a task", it.contender, **it.case)
        rows.append(
            (
                it.contender,
                str(it.case["pool"]),
                str(it.case["backend"]),
                amount(it.p50, it.unit),
                amount(it.p50 / plain.p50, "x") if plain else "-",
                amount(cpu.p50, "s") if cpu else "-",
            )
        )
    heads = ("", "pool", "backend", "no-op tasks", "vs celery.Task", "cpu of a task")
    return table(heads, rows)


def backends(records: Records) -> str:
    """Return the table of the result backends."""
    rows = []
    for it in records.of("backend"):
        if it.contender == backend.OURS:
            theirs = records.find("backend", it.measure, backend.CELERYS, **it.case)
            rows.append(
                (
                    it.measure,
                    str(it.case["pool"]),
                    amount(theirs.p50, it.unit) if theirs else "-",
                    amount(it.p50, it.unit),
                )
            )
    return table(("", "pool", backend.CELERYS, backend.OURS), rows)


def growths(records: Records) -> str:
    """Return a table for each quantity that grows."""
    parts = []
    for what, title in (
        ("running", "tasks running in one process"),
        ("workers", "worker processes"),
        ("rows", "rows in Celery's table, with a tenth as many abort requests"),
    ):
        found = [it for it in records.of("growth") if what in it.case]
        sizes = sorted({int(it.case[what]) for it in found})
        rows = []
        for measure in dict.fromkeys(it.measure for it in found):
            by_size = {it.case[what]: it for it in found if it.measure == measure}
            figures = [
                amount(by_size[size].p50, by_size[size].unit)
                if size in by_size
                else "-"
                for size in sizes
            ]
            rows.append((measure, *figures, _bend(by_size, sizes)))
        heads = (title, *(f"{size:,}" for size in sizes), "bends")
        parts.append(table(heads, rows))
    return "\n\n".join(parts)


def _bend(by_size: dict[Any, Series], sizes: list[int]) -> str:
    """Return the first size whose figure is more than twice that of the smallest."""
    least = by_size[sizes[0]].p50
    for size in sizes[1:]:
        if size in by_size and by_size[size].p50 > 2 * least:
            return f"at {size:,}"
    return "no"


def _colour(contender: str) -> str:
    if contender.startswith("limit"):
        return LIMIT
    return OURS if contender.startswith("aioabort") else OTHERS


def _plot_waiting(records: Records, path: Path) -> None:
    """Plot the share of the waiters that have resumed, over time."""
    figure, axes = plt.subplots(figsize=(7.5, 4))
    case = {"waiters": waiting.CROWD, "rate": waiting.FAST}
    styles = dict(
        zip((c.name for c in waiting.CONTENDERS), ("-", "--", "-", ":"), strict=False)
    )
    for it in records.of(waiting.SUBJECT, "commit to resumed"):
        if it.case == case:
            values = [value for values in it.rounds for value in values]
            percents = [*range(1, 100), 99.5, 99.9]
            axes.plot(
                [max(percentile(values, percent), 1e-4) for percent in percents],
                percents,
                color=_colour(it.contender),
                linestyle=styles.get(it.contender, "-."),
                label=it.contender,
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: amount(value, "s"))
    axes.set_xlabel("from the commit until the coroutine resumes")
    axes.set_ylabel("% of 10,000 waiters")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    _save(figure, path)


def _plot_stopping(records: Records, path: Path) -> None:
    """Plot the delay from abort to stop, with its tail."""
    found = sorted(records.of("stopping"), key=lambda it: it.p50, reverse=True)
    figure, axes = plt.subplots(figsize=(7.5, 0.33 * len(found) + 1))
    names = [
        textwrap.shorten(f"{it.contender}: {it.case['body']} ({it.case['pool']})", 70)
        for it in found
    ]
    axes.barh(
        names, [it.p50 for it in found], color=[_colour(it.contender) for it in found]
    )
    for number, it in enumerate(found):
        axes.plot([it.p50, it.p99], [number, number], color="#333", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: amount(value, "s"))
    axes.set_xlabel("from abort() until the body stops: p50, and a line to p99")
    axes.tick_params(axis="y", labelsize="x-small")
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
