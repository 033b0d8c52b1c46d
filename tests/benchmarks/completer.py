"""A process in which tasks end at a steady rate, as in a worker of eight threads.

Ours is told of the ends by a worker's own agent. What the limit is told by is one
notification for each, sent after the commit.
"""

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, create_subprocess_exec
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
from celery.app.task import Context

from aioabort.worker.agent.agent import agent_for, stop_agents
from aioabort.worker.run import Run

from . import orm
from .counting import count_statements
from .place import make_app, named

CONNECTIONS = 8
NAME = "completer"

#: Seconds from the order until the first task ends.
DELAY = 0.5

LIMIT_CHANNEL = "bench_limit"

END = """
    -- $1 task id
    INSERT INTO celery_taskmeta (id, task_id, status, result, date_done)
    VALUES (nextval('task_id_sequence'), $1, 'SUCCESS', 'null', localtimestamp)
    ON CONFLICT (task_id)
    DO UPDATE SET status = 'SUCCESS', result = 'null', date_done = localtimestamp
"""


@dataclass
class Completer:
    """The process, ready to begin."""

    process: asyncio.subprocess.Process
    begins_at: float = 0.0

    async def begin(self, ids: list[str], rate: int) -> None:
        """Have the tasks end, the first at ``begins_at``, *rate* of them a second."""
        assert self.process.stdin is not None
        self.begins_at = time.monotonic() + DELAY
        order = {"ids": ids, "rate": rate, "begins_at": self.begins_at}
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        await self.process.stdin.drain()

    async def ended(self) -> tuple[dict[str, float], int]:
        """Return the moment of each commit, and the number of our transactions."""
        assert self.process.stdout is not None
        report = json.loads(await self.process.stdout.read())
        return report["committed"], report["transactions"]


@asynccontextmanager
async def completer(dsn: str, hints: str) -> AsyncGenerator[Completer]:
    """Run one; *hints* is ``agent``, ``limit`` or ``none``.

    With ``orm`` it is an agent, and the results are where the ORM has them.
    """
    async with completing_process(__spec__.name, dsn, hints) as ending:
        yield ending


@asynccontextmanager
async def completing_process(module: str, *arguments: str) -> AsyncGenerator[Completer]:
    """Run *module*, which completes tasks, for the time of the block."""
    process = await create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdin=PIPE,
        stdout=PIPE,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield Completer(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def run(dsn: str, hints: str) -> None:
    """Be that process."""
    dsn = named(dsn, NAME)
    statements = count_statements()
    pool = await asyncpg.create_pool(
        dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, reset=leave_as_it_is
    )
    begin, end = _hinting(pool, dsn, hints)
    statement = orm.END if hints == "orm" else END
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    order = json.loads(await asyncio.to_thread(sys.stdin.readline))
    committed: dict[str, float] = {}

    async def complete(task_id: str, due: float) -> None:
        run = begin(task_id)
        await asyncio.sleep(due - time.monotonic())
        await pool.execute(statement, task_id)
        committed[task_id] = time.monotonic()
        await end(task_id, run)

    async with asyncio.TaskGroup() as group:
        for number, task_id in enumerate(order["ids"]):
            due = order["begins_at"] + number / order["rate"]
            # Its body runs for a while.
            await asyncio.sleep(due - 0.05 - time.monotonic())
            group.create_task(complete(task_id, due))
    await asyncio.to_thread(stop_agents)
    await pool.close()
    sent = len(committed) * (2 if hints == "limit" else 1)
    report = {"committed": committed, "transactions": sent + len(statements)}
    sys.stdout.write(json.dumps(report))


async def leave_as_it_is(_connection: object) -> None:
    """Spare a pool the statement with which it resets each connection after use."""


def _hinting(
    pool: Any, dsn: str, hints: str
) -> tuple[Callable[[str], Any], Callable[[str, Any], Any]]:
    """Return what is called before a task, and what after it."""

    async def no_end(_task_id: str, _run: Any) -> None:
        pass

    async def notify(task_id: str, _run: Any) -> None:
        await pool.execute("SELECT pg_notify($1, $2)", LIMIT_CHANNEL, task_id)

    if hints not in {"agent", "orm"}:
        return (lambda _: None), (notify if hints == "limit" else no_end)
    agent = agent_for(orm.make_orm_app(dsn) if hints == "orm" else make_app(dsn))

    def begin(task_id: str) -> Run:
        run = Run(Context(id=task_id, hostname="bench"), agent)
        agent.watch(run)
        return run

    async def end(_task_id: str, run: Run) -> None:
        run.mark_ended("SUCCESS")
        agent.report_end(run)

    return begin, end


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
