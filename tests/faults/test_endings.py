"""Tasks end without a stored result, and processes end during an outage."""

from collections.abc import AsyncIterator

import anyio
import pytest

from .network import NetworkThread
from .postgres import FAST
from .rounds import Arena, run_round
from .workers import Worker

#: How children of a prefork pool come to their end, beside the end of the worker.
WAYS = {
    "recycled": ("--max-tasks-per-child=2",),
    "scaled down": ("--autoscale=6,1",),
}


@pytest.fixture
async def network(arena: Arena) -> AsyncIterator[NetworkThread]:
    """A network to the server, working."""
    network = NetworkThread(arena.dsn)
    yield network
    network.close()


async def test_without_a_result(arena: Arena) -> None:
    """Tasks are ignored, mapped, and cut off from the chain before them.

    ``Ignore`` is raised by tasks that make no check; a mapping stops between two items.
    """
    await run_round(
        arena,
        "tasks ignored, mapped, cut off their chain",
        anyio.sleep,
        share=0.6,
        kinds={"ignoring": 2, "mapped": 2, "chained": 3, "raising": 1},
    )


@pytest.mark.parametrize("way", WAYS)
async def test_children_end(arena: Arena, network: NetworkThread, way: str) -> None:
    """Children end while outcomes cannot be recorded, as results can be stored.

    seen | network to the requests cut | result stored | child ends | mended: recorded
    """
    worker = Worker(
        arena.place,
        way.replace(" ", "-"),
        arena.dsn,
        arguments=WAYS[way],
        aioabort_dsn=network.dsn,
        # Celery scales down what has been idle for so long.
        worker_autoscaler_keepalive=0.5,
    )
    await worker.start()
    app = arena.app(worker)
    app.conf.aioabort_dsn = arena.dsn

    async def inject(seconds: float) -> None:
        network.call(lambda network: network.cut())
        await anyio.sleep(seconds)
        network.call(lambda network: network.mend())

    try:
        await run_round(
            arena,
            f"children {way} in an outage",
            inject,
            [worker],
            client_app=app,
            share=0.5,
        )
    finally:
        await worker.stop()
        app.close()


async def test_worker_stops_in_an_outage(arena: Arena) -> None:
    """A worker's warm shutdown begins in an outage, and ends after it.

    PostgreSQL stopped | SIGTERM | tasks cannot store their ends | started | stored,
    recorded | the worker has ended, another one starts
    """
    worker = Worker(arena.place, "stopping", arena.dsn)
    await worker.start()

    async def inject(seconds: float) -> None:
        await arena.postgres.stop(FAST)
        async with anyio.create_task_group() as group:
            group.start_soon(worker.stop)
            await anyio.sleep(seconds)
            await arena.postgres.start()
        await worker.start()

    try:
        await run_round(
            arena, "worker stopped in an outage", inject, [worker], share=0.5
        )
    finally:
        await worker.stop()
