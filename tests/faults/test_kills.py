"""The grace of tasks runs out while PostgreSQL stands still."""

import anyio

from .rounds import Arena, run_round
from .workers import Worker

CLIENTS = "datname IS NOT NULL"


async def test_grace_in_a_frozen_server(arena: Arena) -> None:
    """Each is killed, once PostgreSQL answers; a soft time limit may come first.

    body makes no check | aborted | PostgreSQL frozen | the grace is over | thawed |
    killed over the broker of the task's app

    The agents of the worker were started for another app, with another broker.
    """
    worker = Worker(
        arena.place,
        "kills",
        arena.dsn,
        environment={"AIOABORT_FAULTS_OTHER_BROKER": "memory://"},
        concurrency=8,
        worker_enable_remote_control=True,
    )
    await worker.start()

    async def inject(seconds: float) -> None:
        with arena.postgres.frozen(arena.postgres.backends(CLIENTS)):
            await anyio.sleep(seconds)

    try:
        await run_round(
            arena,
            "grace over while PostgreSQL is frozen",
            inject,
            [worker],
            share=0.4,
            kinds={"stubborn": 2, "limited": 2, "raising": 2, "short": 1},
        )
    finally:
        await worker.stop()
