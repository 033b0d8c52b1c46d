"""The connections of a client: whose they are, where they lead, and how they break."""

import asyncio
import gc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio.lowlevel
import asyncpg
import psycopg
import pytest
from anyio import fail_after, to_thread
from celery import Celery

from aioabort import (
    AbortClient,
    ClientClosed,
    StoreError,
    StoreUnavailable,
    WrongLoop,
)
from aioabort.dsn import parse_dsn
from aioabort.postgres.connection import PING, connect, new_connection
from aioabort.timing import Timing
from tests.integration.steps import CONNECTIONS, end, listening, waiting_for
from tests.support.apps import MakeApp
from tests.support.network import Network
from tests.support.waiting import block_until, until


async def test_a_lent_pool_is_used_and_stays_open(
    app: Celery, dsn: str, database: "asyncpg.Connection[Any]", task_id: str
) -> None:
    """All statements run on the user's pool; only the listener has its own connection."""
    settings = {"application_name": "mine"}
    async with asyncpg.create_pool(dsn, min_size=1, server_settings=settings) as pool:
        async with AbortClient(app, pool=pool) as client:
            await listening(client)
            assert (await client.abort(task_id)).answer == "requested"
            assert await database.fetchval(CONNECTIONS) == 1
        assert not pool.is_closing()
        assert await pool.fetchval("SELECT count(*) FROM aioabort_request") == 1


async def test_a_pool_of_another_loop_is_refused(app: Celery, dsn: str) -> None:
    """asyncpg would fail in some strange way, later; the client says what is wrong."""

    async def new_pool() -> "asyncpg.Pool[Any]":
        return await asyncpg.create_pool(dsn, min_size=0)

    pool = await to_thread.run_sync(asyncio.run, new_pool())
    with pytest.raises(WrongLoop, match=r"pool .* another event loop"):
        await AbortClient(app, pool=pool).open()


async def test_a_closed_pool_is_refused(app: Celery, dsn: str) -> None:
    """A pool that was closed before cannot be lent."""
    pool = await asyncpg.create_pool(dsn, min_size=0)
    await pool.close()
    with pytest.raises(ClientClosed, match=r"pool .* is closed"):
        await AbortClient(app, pool=pool).open()


async def test_a_pool_that_was_not_awaited_is_refused(app: Celery, dsn: str) -> None:
    """The forgotten ``await`` of create_pool() is named, and not tried again for ever."""
    pool = asyncpg.create_pool(dsn, min_size=0)
    with pytest.raises(StoreError, match=r"pool .* not initialized") as caught:
        await AbortClient(app, pool=pool).open()
    assert not isinstance(caught.value, StoreUnavailable)


def test_something_else_than_a_pool_is_refused(app: Celery, dsn: str) -> None:
    """The mistake is named where it is made, and no password is shown."""
    with pytest.raises(TypeError, match=r"asyncpg\.Pool, not str"):
        AbortClient(app, pool=dsn)  # type: ignore[arg-type]


async def test_a_pool_that_is_closed_too_early_ends_every_wait(
    dsn: str, make_app: MakeApp, task_id: str
) -> None:
    """A pool does not come back, so no call waits for it.

    wait() | the user closes the pool | wait() and abort() raise
    """
    app = make_app(dsn, aioabort_poll_interval=0.1)
    pool = await asyncpg.create_pool(dsn, min_size=0)
    async with AbortClient(app, pool=pool) as client:
        waiting = await waiting_for(client, task_id)
        await pool.close()
        with fail_after(10), pytest.raises(StoreError, match=r"pool .* is closed"):
            await waiting
        with pytest.raises(StoreError, match=r"pool .* is closed"):
            await client.abort(task_id)


async def test_a_client_belongs_to_one_loop(app: Celery, task_id: str) -> None:
    """From another loop every verb says so, and the first loop's use is not disturbed."""
    errors: list[BaseException] = []

    async def use(client: AbortClient) -> None:
        watch = client.watch(task_id)
        for call in (
            client.open(),
            client.abort(task_id),
            client.snapshot(task_id),
            client.wait(task_id),
            anext(watch),
            client.aclose(),
        ):
            with pytest.raises(WrongLoop, match="another event loop") as caught:
                await call
            errors.append(caught.value)

    async with AbortClient(app) as client:
        await to_thread.run_sync(asyncio.run, use(client))
        assert len(errors) == 6
        assert (await client.abort(task_id)).answer == "requested"


def test_a_client_ends_with_its_loop(app: Celery, dsn: str, task_id: str) -> None:
    """The end of its loop closes a client that is still open, with a warning."""

    async def leave_open() -> AbortClient:
        client = AbortClient(app)
        await client.open()
        return client

    async def use(client: AbortClient) -> None:
        with pytest.raises(ClientClosed):
            await client.abort(task_id)
        with pytest.raises(ClientClosed):
            await client.open()
        await client.aclose()

    client = asyncio.run(leave_open())
    assert client.is_closed
    asyncio.run(use(client))
    with psycopg.connect(dsn, autocommit=True) as connection:
        block_until(lambda: connection.execute(CONNECTIONS).fetchone() == (0,))


async def test_a_closed_client_cannot_be_opened_again(app: Celery) -> None:
    """``open()`` does not return as if all were well; closing twice is no error."""
    client = AbortClient(app)
    async with client:
        pass
    await client.aclose()
    with pytest.raises(ClientClosed, match="cannot be opened again"):
        await client.open()


async def test_whoever_opens_hears_that_it_was_closed(app: Celery) -> None:
    """A client that is closed while it connects tells those who wait for that.

    A: open() | B: aclose() | A: ClientClosed
    """
    client = AbortClient(app)
    opening = asyncio.create_task(client.open())
    await anyio.lowlevel.checkpoint()
    await client.aclose()
    with pytest.raises(ClientClosed):
        await opening


async def test_health_tells_how_a_client_hears(
    dsn: str, make_app: MakeApp, task_id: str
) -> None:
    """Mode, reason, staleness and waiters, from before it is opened until it is closed."""
    client = AbortClient(make_app(dsn, aioabort_poll_interval=2.0))
    closed = client.health()
    assert (closed.mode, closed.is_connected) == ("poll", False)
    assert closed.reason == "the client is not open"
    async with client:
        await listening(client)
        waiting = await waiting_for(client, task_id)
        health = client.health()
        assert (health.reason, health.staleness, health.waiters) == (None, 10.0, 1)
        assert (health.is_connected, health.last_error) == (True, None)
        waiting.cancel()
    assert client.health().reason == "the client is not open"


async def test_health_without_notifications(dsn: str, make_app: MakeApp) -> None:
    """A client that was told not to listen says so, and what that costs."""
    app = make_app(dsn, aioabort_notify=False, aioabort_poll_interval=0.5)
    async with AbortClient(app) as client:
        health = client.health()
    assert (health.mode, health.staleness) == ("poll", 0.5)
    assert health.reason == "aioabort_notify is False"


async def test_health_tells_of_an_outage_and_of_its_end(
    network: Network, make_app: MakeApp
) -> None:
    """While PostgreSQL is away the error is there; afterwards it is the last one.

    notify | cut: poll | mended: notify again
    """
    app = make_app(network.dsn, aioabort_poll_interval=0.1)
    async with AbortClient(app) as client:
        await listening(client)
        await network.cut()
        await until(lambda: client.health().mode == "poll")
        await until(lambda: not client.health().is_connected)
        health = client.health()
        assert "PostgreSQL is away" in (health.reason or "")
        assert "PostgreSQL is away" in (health.last_error or "")
        await network.mend()
        await listening(client)
        await until(lambda: client.health().is_connected)
        assert "PostgreSQL is away" in (client.health().last_error or "")


async def test_a_service_is_looked_up(
    dsn: str,
    make_app: MakeApp,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    task_id: str,
) -> None:
    """``service=`` names a section of the file in PGSERVICEFILE, as for libpq."""
    facts = psycopg.conninfo.conninfo_to_dict(dsn)
    lines = [f"{name}={value}" for name, value in facts.items()]
    (tmp_path / "services").write_text("\n".join(["[mine]", *lines, ""]))
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    app = make_app(dsn, aioabort_dsn="postgresql:///?service=mine")
    async with AbortClient(app) as client:
        await listening(client)
        assert (await client.abort(task_id)).answer == "requested"


async def test_another_host_takes_over(
    network: Network, dsn: str, make_app: MakeApp, app: Celery, task_id: str
) -> None:
    """Of several hosts, one that answers is used, whichever that is.

    one | one is gone, two works | wait() goes on over two
    """
    two = Network(dsn)
    await two.mend()
    hosts = f"{urlsplit(network.dsn).netloc},{urlsplit(two.dsn).netloc.split('@')[1]}"
    several = urlsplit(network.dsn)._replace(netloc=hosts).geturl()
    own = make_app(dsn, aioabort_dsn=several, aioabort_poll_interval=0.1)
    async with AbortClient(own) as client:
        waiting = await waiting_for(client, task_id)
        assert two.connections == 0
        await network.cut()
        await end(app, task_id, "value")
        with fail_after(15):
            assert await waiting == "value"
        assert two.connections > 0
    await two.cut()


async def test_a_connect_that_is_cancelled_leaves_nothing_behind(
    network: Network, database: "asyncpg.Connection[Any]"
) -> None:
    """Neither a connection nor an error that the event loop would log.

    socket: connected | cancelled, some turns of the loop later | asyncpg: asks for TLS
    """
    errors: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    for turns in range(20):
        connecting = asyncio.create_task(
            new_connection(parse_dsn(network.dsn, setting="dsn"), Timing(), PING)
        )
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting

    gc.collect()
    assert errors == []

    async def all_closed() -> bool:
        return await database.fetchval(CONNECTIONS) == 0

    await until(all_closed)


@pytest.mark.parametrize("cancelled", [1, 2])
async def test_cancelled_statements_end_no_other(
    network: Network, cancelled: int
) -> None:
    """While the server does not answer to a cancellation, the next statement times out.

    So does one that waits behind another that was cancelled while it waited.
    """
    async with connect(parse_dsn(network.dsn, setting="dsn"), Timing()) as link:
        await link.fetch("SELECT 1")
        network.freeze()
        for _ in range(cancelled):
            statement = asyncio.create_task(link.fetch("SELECT 1"))
            await anyio.lowlevel.checkpoint()
            statement.cancel()
            await asyncio.wait([statement])
            assert statement.cancelled()
        next_one = asyncio.create_task(link.fetch("SELECT 1", timeout=0.1))
        with fail_after(10):
            await asyncio.wait([next_one])
        assert isinstance(next_one.exception(), OSError | asyncpg.InterfaceError)
    transport = link.asyncpg_connection._transport  # type: ignore[attr-defined]
    assert transport.is_closing()
