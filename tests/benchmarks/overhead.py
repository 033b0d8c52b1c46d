"""What a worker loses: tasks a second that do nothing, all queued before the first."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

from .marks import Board, open_board
from .place import Place, backend_url
from .workers import Worker, celery_worker

SUBJECT = "overhead"

KINDS = {
    "plain": "celery.Task",
    "contrib": "celery.contrib.abortable",
    "ours": "aioabort",
}

#: The URL of a result backend, by the scheme it begins with.
BACKENDS: dict[str, Callable[[str], str]] = {"db+": backend_url}
if find_spec("aioabort.backend"):
    BACKENDS["aioabort+"] = lambda dsn: f"aioabort+{dsn}"


def measure(place: Place) -> None:
    """Measure each kind of task in turn, by pool and by result backend."""
    with place.tables() as dsn:
        asyncio.run(_measure(place, dsn))


async def _measure(place: Place, dsn: str) -> None:
    async with open_board(place.folder) as board:
        for pool in ("prefork", "threads"):
            for scheme, url in BACKENDS.items():
                async with celery_worker(
                    place, board, dsn, pool, 2, result_backend=url(dsn)
                ) as worker:
                    await _run(place, board, worker, scheme)


async def _run(place: Place, board: Board, worker: Worker, scheme: str) -> None:
    tasks = place.pick(300, 50)
    # Processes import what they need at their first task.
    for kind in KINDS:
        await _tasks_per_second(board, worker, kind, 20)
    kinds = list(KINDS.items())
    for round_ in range(place.pick(6, 3)):
        # The first of each round would find the tables at their smallest.
        turn = round_ % len(kinds)
        for kind, name in kinds[turn:] + kinds[:turn]:
            used = _cpu(worker.pid)
            rate = await _tasks_per_second(board, worker, kind, tasks)
            used = _cpu(worker.pid) - used
            case = {"pool": worker.pool, "backend": scheme}
            add = place.records.add
            add(SUBJECT, "no-op tasks", name, [rate], unit="/s", **case)
            if used:
                add(SUBJECT, "cpu of a task", name, [used / tasks], **case)


async def _tasks_per_second(
    board: Board, worker: Worker, kind: str, tasks: int
) -> float:
    key = uuid4().hex
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        await asyncio.to_thread(_send, worker, kind, tasks, key)
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    start = time.monotonic()
    return tasks / ((await board.marked(key, "last")).moment - start)


def _send(worker: Worker, kind: str, tasks: int, key: str) -> None:
    for _ in range(tasks):
        worker.app.send_task(f"{kind}.noop")
    worker.app.send_task("plain.last", (key,))


def _cpu(worker: int) -> float:
    """Return the seconds of processor that a worker has used, or 0 if that is unknown."""
    try:
        children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
        return sum(map(_cpu_of_one, (str(worker), *children)))
    except OSError:
        return 0.0


def _cpu_of_one(pid: str) -> float:
    # The name in the second field may hold anything, even blanks.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = fields[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
