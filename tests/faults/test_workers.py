"""Workers and their children are stopped and killed, and so are producers."""

import os
import signal

import anyio
import pytest

from .processes import children
from .rounds import Arena, run_round
from .workers import COLD, WARM, Worker


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
