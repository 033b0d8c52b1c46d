"""The network between one process and PostgreSQL fails, in each of its ways."""

from collections.abc import AsyncIterator, Callable

import anyio
import pytest

from .network import Network
from .postgres import celery_url
from .rounds import Arena, run_round
from .workers import Worker

HARMS: dict[str, Callable[[Network], None]] = {
    "cut": Network.cut,
    "drops everything": Network.drop,
    "delays by 0.5 s": lambda network: network.delay(0.5),
    "half-closes": Network.half_close,
}


@pytest.fixture
async def network(arena: Arena) -> AsyncIterator[Network]:
    """A network to the server, working."""
    network = Network(arena.postgres.port)
    yield network
    network.close()


@pytest.mark.parametrize("harm", HARMS)
async def test_of_a_worker(arena: Arena, network: Network, harm: str) -> None:
    """A worker is cut off from the server, while everybody else goes on."""
    worker = Worker(
        arena.place,
        f"network-{harm.split(maxsplit=1)[0]}",
        f"postgresql://postgres@127.0.0.1:{network.port}/{arena.database}",
        pool="threads",
        concurrency=8,
    )
    await worker.start()
    app = arena.app(worker)
    # The requests are made by somebody who is not cut off.
    app.conf.result_backend = celery_url(arena.dsn)
    try:
        await run_round(
            arena,
            f"worker's network {harm}",
            lambda seconds: _harm(network, harm, seconds),
            [worker],
            client_app=app,
            share=0.4,
        )
    finally:
        await worker.stop()
        app.close()


@pytest.mark.parametrize("harm", HARMS)
async def test_of_a_client(arena: Arena, network: Network, harm: str) -> None:
    """A producer is cut off from the server: it asks, and awaits, until it gets through."""
    app = arena.app(arena.workers[0])
    app.conf.result_backend = celery_url(
        f"postgresql://postgres@127.0.0.1:{network.port}/{arena.database}"
    )
    try:
        await run_round(
            arena,
            f"client's network {harm}",
            lambda seconds: _harm(network, harm, seconds),
            client_app=app,
            share=0.6,
        )
    finally:
        app.close()


async def _harm(network: Network, harm: str, seconds: float) -> None:
    HARMS[harm](network)
    await anyio.sleep(seconds)
    network.mend()
