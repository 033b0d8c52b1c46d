"""What is left after it all: there should be nothing."""

import gc
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .postgres import Postgres, query
from .processes import usage
from .rounds import HALVES, Arena

#: What a process may have more of than after the first round: connections that
#: SQLAlchemy's pool has opened since, and threads that the pool starts when needed.
MORE = {"files": 60, "threads": 12}

UNSETTLED = "SELECT count(*) FROM aioabort_request WHERE outcome IS NULL"


@dataclass(frozen=True)
class Belongings:
    """What this process has open."""

    files: int
    threads: frozenset[str]

    @classmethod
    def now(cls) -> "Belongings":
        """Return what it has now."""
        gc.collect()
        return cls(
            len(list(Path("/proc/self/fd").iterdir())),
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
    """Yield the connections that are open when nobody is left."""
    left = postgres.query(
        "SELECT application_name, query FROM pg_stat_activity"
        " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    for name, statement in left:
        yield f"connection {name!r}: {statement[:60]}"


def of_this_process(before: Belongings) -> Iterator[str]:
    """Yield what this process has more of than *before*."""
    now = Belongings.now()
    if now.files > before.files:
        links = [
            str(path.readlink())
            for path in Path("/proc/self/fd").iterdir()
            if path.is_symlink()
        ]
        yield f"{before.files} files here, then {now.files}: {sorted(links)[-8:]}"
    if more := now.threads - before.threads:
        yield f"threads here: {sorted(more)}"
