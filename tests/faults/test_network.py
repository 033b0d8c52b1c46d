"""The network between one process and PostgreSQL fails, in each of its ways."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import anyio
import pytest
from celery import Celery

from aioabort.timing import Timing
from tests.support.databases import celery_url
from tests.support.network import Network
from tests.support.waiting import until

from .network import NetworkThread
from .rounds import Arena, run_round
from .workers import Worker

HARMS: dict[str, Callable[[Network], Awaitable[None] | None]] = {
    "cut": Network.cut,
    "drops everything": Network.drop,
    "delays by 0.5 s": lambda network: network.delay(0.5),
    "half-closes": Network.half_close,
}

#: Seconds for 64 KB, and for any statement: a large result takes longer than that.
SLOW, STATEMENT_TIMEOUT = 0.05, 2.0


@pytest.fixture(scope="module")
def network(arena: Arena) -> Iterator[NetworkThread]:
    """A network to the server, working."""
    network = NetworkThread(arena.dsn)
    yield network
    network.close()


@pytest.fixture(scope="module")
def worker(arena: Arena, network: NetworkThread) -> Iterator[Worker]:
    """A worker at the other end of the network."""
    worker = Worker(arena.place, "network", network.dsn, pool="threads", concurrency=8)
    asyncio.run(worker.start())
    yield worker
    asyncio.run(worker.stop())


@pytest.fixture
def near_app(arena: Arena, worker: Worker) -> Iterator[Celery]:
    """An app for clients that are not cut off, and whose worker is."""
    app = arena.app(worker)
    app.conf.result_backend = celery_url(arena.dsn)
    yield app
    app.close()


@pytest.fixture
def far_app(arena: Arena, network: NetworkThread) -> Iterator[Celery]:
    """An app for clients that are cut off, and whose workers are not."""
    app = arena.app(arena.workers[0])
    app.conf.result_backend = celery_url(network.dsn)
    yield app
    app.close()


@pytest.mark.parametrize("harm", HARMS)
async def test_of_a_worker(
    arena: Arena, network: NetworkThread, worker: Worker, near_app: Celery, harm: str
) -> None:
    """A worker is cut off from the server, while all other programs go on."""
    await run_round(
        arena,
        f"worker's network {harm}",
        lambda seconds: _harm(network, harm, seconds),
        [worker],
        client_app=near_app,
        share=0.4,
    )


@pytest.mark.parametrize("harm", HARMS)
async def test_of_a_client(
    arena: Arena, network: NetworkThread, far_app: Celery, harm: str
) -> None:
    """A client is cut off from the server: it requests, and waits, until it gets through."""
    await run_round(
        arena,
        f"client's network {harm}",
        lambda seconds: _harm(network, harm, seconds),
        client_app=far_app,
        share=0.6,
    )


async def test_large_results(
    arena: Arena, network: NetworkThread, far_app: Celery
) -> None:
    """Each gets through a slow network in the end, and delays no other wait for long."""
    far_app.conf.aioabort_timing = Timing(statement_timeout=STATEMENT_TIMEOUT)

    async def inject(seconds: float) -> None:
        assert arena.load is not None
        items = arena.load.items

        def is_one_through() -> bool:
            return any(item.kind == "large" and item.ending for item in items)

        network.call(lambda network: network.delay(SLOW))
        await anyio.sleep(seconds)
        await until(is_one_through)
        network.call(Network.mend)

    await run_round(
        arena,
        "client's network slow, results large",
        inject,
        client_app=far_app,
        share=0.2,
        is_local=True,
        kinds={"large": 1, "raising": 3, "returning": 2},
    )


async def _harm(network: NetworkThread, harm: str, seconds: float) -> None:
    network.call(HARMS[harm])
    await anyio.sleep(seconds)
    network.call(Network.mend)
