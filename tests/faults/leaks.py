"""What is left after it all: there should be nothing."""

import gc
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.databases import query

from .postgres import Postgres
from .processes import usage
from .rounds import HALVES, Arena

#: What a process may have more of than after the first round: connections that
#: SQLAlchemy's pool has opened since, and threads that the pool starts when needed.
MORE = {"files": 60, "threads": 12}

UNSETTLED = "SELECT count(*) FROM aioabort_request WHERE outcome IS NULL"


@dataclass(frozen=True)
class Belongings:
    """What this process has open."""

    files: Counter[str]
    threads: frozenset[str]

    @classmethod
    def now(cls) -> "Belongings":
        """Return what it has now."""
        gc.collect()
        return cls(
            Counter(_open_files()),
            frozenset(thread.name for thread in threading.enumerate()),
        )


def of_workers(arena: Arena) -> Iterator[str]:
    """Yield what the workers have more of than after the first round."""
    for worker, before in zip(arena.workers, arena.baseline, strict=False):
        now = usage(worker.pid)
        for what, more in MORE.items():
            if now[what] > before[what] + more:
                yield f"worker {worker.name}: {before[what]} {what}, then {now[what]}"
    connections = arena.postgres.backends("application_name = 'aioabort'")
    most = sum(worker.processes for worker in arena.workers)
    if len(connections) > most:
        yield f"{len(connections)} connections of {most} processes"


def of_rows(dsn: str) -> Iterator[str]:
    """Yield what rows are left without an end, or without their other half."""
    for what, statement in {"unsettled": UNSETTLED, "half": HALVES}.items():
        [(count,)] = query(dsn, statement)
        if count:
            yield f"{count} {what} requests"


def of_connections(postgres: Postgres) -> Iterator[str]:
    """Yield the connections that stay open after all have closed theirs."""
    left = postgres.query(
        "SELECT application_name, query FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    for name, statement in left:
        yield f"connection {name!r}: {statement[:60]}"


def of_this_process(before: Belongings) -> Iterator[str]:
    """Yield what this process has more of than *before*."""
    now = Belongings.now()
    if now.files.total() > before.files.total():
        more_files = (now.files - before.files).elements()
        yield f"files here: {', '.join(sorted(more_files))}"
    if more := now.threads - before.threads:
        yield f"threads here: {sorted(more)}"


def _open_files() -> Iterator[str]:
    """Yield the name of each open file, and of a pipe or a socket what it is."""
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the folder itself is closed by now
            yield re.sub(r":\[\d+\]$", "", link.readlink().name)
