"""Workers and their children are stopped and killed, and so are clients."""

import json
import os
import random
import signal
import sys
from uuid import uuid4

import anyio
import pytest

from tests.support.databases import query
from tests.support.programs import spawn
from tests.support.waiting import until

from .processes import children
from .rounds import FORGET, HALVES, Arena, run_round
from .workers import COLD, PROJECT, WARM, Worker

KNOWN = """
    SELECT count(*) FILTER (WHERE task_id = ANY(%s::text[])),
           count(*) FILTER (WHERE task_id = ANY(%s::text[]))
    FROM aioabort_request
"""


@pytest.mark.parametrize("acks", ["late", "early"])
async def test_children_killed(arena: Arena, acks: str) -> None:
    """Children that run tasks get SIGKILL, one by one.

    With late acknowledgements their tasks are delivered again; without, Celery's own
    parent process says that they failed.
    """
    worker = Worker(
        arena.place, f"killed-{acks}", arena.dsn, task_acks_late=acks == "late"
    )
    await worker.start()

    async def inject(seconds: float) -> None:
        for _ in range(max(3, round(seconds * 2))):
            for child in children(worker.pid)[:1]:
                os.kill(child, signal.SIGKILL)
            await anyio.sleep(0.5)

    try:
        name = f"children killed, acks {acks}"
        await run_round(arena, name, inject, [worker], share=0.6)
    finally:
        await worker.stop()


@pytest.mark.parametrize("how", [WARM, COLD], ids=["warm", "cold"])
async def test_worker_restarts(arena: Arena, how: int) -> None:
    """The worker is restarted: it ends its tasks, or lets go of them."""
    name = {WARM: "warm", COLD: "cold"}[how]
    worker = Worker(arena.place, name, arena.dsn)
    await worker.start()

    async def inject(_seconds: float) -> None:
        await worker.stop(how)
        await worker.start()

    try:
        await run_round(arena, f"worker restarted, {name}", inject, [worker], share=0.6)
    finally:
        await worker.stop()


async def test_clients_killed(arena: Arena) -> None:
    """Clients get SIGKILL in the middle of ``abort()``: it is done, or it is not.

    Other clients ask the same tasks to stop, and get their receipts.
    """
    chance = random.Random(arena.seed)
    conf = json.dumps(arena.workers[0].conf)

    async def inject(seconds: float) -> None:
        assert arena.load is not None
        for number in range(max(2, round(seconds))):
            unknown = [str(uuid4()) for _ in range(500)]
            waiting = [item for item in arena.load.items if item.receipt is None]
            ids = [*(item.task_id for item in waiting), *unknown]
            chance.shuffle(ids)
            log = arena.folder / f"client-{number}"
            client = spawn(
                *(sys.executable, PROJECT / "client.py", *ids),
                log=log,
                env=os.environ | {"AIOABORT_FAULTS_PROJECT": conf},
            )
            await until(lambda log=log: log.stat().st_size > 0)
            await anyio.sleep(chance.uniform(0, 0.3))
            client.kill()
            client.wait()
            assert query(arena.dsn, HALVES) == [(0,)]
            told = log.read_text().split()
            known = query(arena.dsn, KNOWN, told[:-1], unknown)
            # The last line may be torn.
            assert known[0][0] == len(told[:-1])
            # No worker runs these.
            query(arena.dsn, FORGET, unknown)

    await run_round(arena, "clients killed in abort()", inject)
