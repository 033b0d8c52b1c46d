"""Aborts interrupt tasks that make no check, in children that were forked again."""

import anyio

from .rounds import Arena, run_round
from .workers import Worker, folder_transport


async def test_children_forked_by_a_thread(arena: Arena) -> None:
    """With a broker that Celery polls, a thread of the worker forks later children.

    On Python 3.13 no signal handler runs in these while they compute.
    """
    folder = arena.subfolder("folder-broker")
    worker = Worker(
        arena.place,
        "raise-mode",
        arena.dsn,
        python=arena.place.other_python,
        arguments=("--max-tasks-per-child=1",),
        **folder_transport(folder),
    )
    await worker.start()
    try:
        await run_round(
            arena,
            "children forked by a thread, raise mode",
            anyio.sleep,
            [worker],
            share=0.2,
            kinds={"computing": 4, "raising": 1},
        )
    finally:
        await worker.stop()
