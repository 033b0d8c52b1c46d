"""Waiters when connections break, and servers with them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import psycopg
import pytest
from anyio import fail_after, to_thread
from celery import Celery
from celery.app.task import Context

from aioabort import (
    AbortableAsyncResult,
    AbortClient,
    StoreUnavailable,
    TaskAborted,
    WaitTimeout,
)
from aioabort.testing.postgres import ThrowawayServer, throwaway_postgres
from aioabort.timing import Timing
from aioabort.worker.agent.agent import agent_for, stop_agents
from aioabort.worker.run import Run
from tests.integration.steps import end, listening, waiting_for
from tests.support.apps import MakeApp
from tests.support.full_queue import SMALL_QUEUE, full_queue, with_small_queue
from tests.support.network import Network
from tests.support.waiting import BOUND, block_until, until

#: A silent server is given up after fractions of a second.
IMPATIENT = Timing(heartbeat=0.2, heartbeat_timeout=0.3, statement_timeout=0.5)


async def test_a_frozen_connection_is_given_up(
    network: Network, make_app: MakeApp, app: Celery, task_id: str
) -> None:
    """A peer that says nothing is noticed by the heartbeat and by every statement.

    notify | frozen: neither an error nor an end | task ends | new connections
    """
    own = make_app(network.dsn, aioabort_poll_interval=0.1, aioabort_timing=IMPATIENT)
    async with AbortClient(own) as client:
        await listening(client)
        waiting = await waiting_for(client, task_id)
        network.freeze()
        await end(app, task_id, "value")
        with fail_after(15):
            assert await waiting == "value"
        await listening(client)


async def test_all_backends_are_terminated(
    dsn: str, make_app: MakeApp, app: Celery, database: "asyncpg.Connection[Any]"
) -> None:
    """An administrator who ends every connection of ours ends no wait.

    100 wait() | all connections ended, again and again | tasks end | all get values
    """
    own = make_app(dsn, aioabort_poll_interval=0.1)
    task_ids = [str(uuid4()) for _ in range(100)]
    async with AbortClient(own) as client:
        waiting = [asyncio.create_task(client.wait(task_id)) for task_id in task_ids]
        for task_id in task_ids:
            if int(task_id[0], 16) < 4:
                await database.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
                    "datname = current_database() AND application_name = 'aioabort'"
                )
            await end(app, task_id, task_id)
        with fail_after(15):
            assert await asyncio.gather(*waiting) == task_ids


async def test_a_timeout_during_an_outage_names_the_trouble(
    network: Network, make_app: MakeApp, task_id: str
) -> None:
    """``wait(timeout=)`` ends in time without PostgreSQL, too, and says what happened."""
    app = make_app(network.dsn, aioabort_poll_interval=0.1)
    async with AbortClient(app) as client:
        await network.cut()
        with fail_after(10), pytest.raises(WaitTimeout, match="PostgreSQL is away"):
            await client.wait(task_id, timeout=1.0)


@pytest.fixture(scope="module")
def full_queue_dsn() -> Iterator[str]:
    """A server in which every NOTIFY fails."""
    with throwaway_postgres(settings=SMALL_QUEUE) as server, full_queue(server.dsn()):
        yield server.dsn()


@with_small_queue
async def test_a_full_queue_of_notifications_delays_only(
    full_queue_dsn: str, make_app: MakeApp, task_id: str
) -> None:
    """When NOTIFY fails, requests are made all the same, and polls find what ends."""
    app = make_app(full_queue_dsn, aioabort_poll_interval=0.1)
    await to_thread.run_sync(lambda: app.backend.ResultSession().close())
    async with AbortClient(app) as client:
        waiting = await waiting_for(client, task_id)
        assert (await client.abort(task_id)).answer == "requested"
        await end(app, task_id, "value")
        with fail_after(10):
            assert await waiting == "value"


@with_small_queue
async def test_a_worker_works_on_with_a_full_queue_of_notifications(
    full_queue_dsn: str, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that cannot notify sees aborts and settles them, on one connection.

    NOTIFY of the first end fails | the second request is seen, and settled
    """
    app = make_app(full_queue_dsn, aioabort_poll_interval=0.1)
    await to_thread.run_sync(lambda: app.backend.ResultSession().close())

    def run_aborted() -> None:
        run = Run(Context(id=str(uuid4()), hostname="worker@host"), agent_for(app))
        run.supervisor.watch(run)
        asyncio.run(abort(run.task_id))
        assert run.wait(10)
        run.mark_ended("SUCCESS")
        run.supervisor.report_end(run)
        asyncio.run(settled(run.task_id))

    async def abort(task_id: str) -> None:
        async with AbortClient(app) as client:
            await client.abort(task_id)

    async def settled(task_id: str) -> None:
        async with AbortClient(app) as client:
            with fail_after(10):
                async for snapshot in client.watch(task_id):
                    if snapshot.request and snapshot.request.outcome == "returned":
                        break

    try:
        for _ in range(2):
            await to_thread.run_sync(run_aborted)
    finally:
        stop_agents()
    assert "trying again" not in caplog.text


@contextmanager
def standby_of(primary: ThrowawayServer) -> Iterator[ThrowawayServer]:
    """A hot standby that follows *primary*."""
    programs = Path(f"/proc/{primary.pid}/exe").readlink().parent
    account = "nobody" if os.geteuid() == 0 else None
    data = primary.folder / "standby"
    run = {"user": account, "cwd": "/", "stdout": subprocess.DEVNULL}
    run["stderr"] = subprocess.DEVNULL
    source = ["-h", str(primary.folder), "-p", str(primary.port), "-U", "postgres"]
    subprocess.run(
        [programs / "pg_basebackup", *source, "-D", data, "-R", "-c", "fast"],
        check=True,
        **run,
    )
    settings = ["listen_addresses=", "port=5433", "max_connections=200", "fsync=off"]
    options = [option for setting in settings for option in ("-c", setting)]
    process = subprocess.Popen(
        [programs / "postgres", "-D", data, "-k", primary.folder, *options], **run
    )
    try:
        standby = ThrowawayServer(primary.folder, process.pid, 5433)

        def answers() -> bool:
            assert process.poll() is None
            try:
                psycopg.connect(standby.dsn()).close()
            except psycopg.OperationalError:
                return False
            return True

        block_until(answers)
        yield standby
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(30)


# It finds the programs of the running server in /proc.
@pytest.mark.only_if(sys.platform == "linux")
async def test_a_new_primary_takes_over(make_app: MakeApp, task_id: str) -> None:
    """After a failover, clients go on with the standby that was promoted.

    notify over the primary, though the standby is named first | the primary dies |
    promoted | the task ends there | wait() ends, abort() works, notify again
    """
    with throwaway_postgres() as primary, standby_of(primary) as standby:
        hosts = f"host={primary.folder},{primary.folder}&port=5433,5432"
        app = make_app(
            primary.dsn(),
            aioabort_dsn=f"postgresql://postgres@/postgres?{hosts}",
            aioabort_poll_interval=0.1,
        )
        await to_thread.run_sync(lambda: app.backend.ResultSession().close())
        async with AbortClient(app) as client:
            await listening(client)
            waiting = await waiting_for(client, task_id)
            assert (await client.abort(task_id)).answer == "requested"
            await to_thread.run_sync(replicated, standby, task_id)
            os.kill(primary.pid, signal.SIGQUIT)
            await until(lambda: client.health().mode == "poll")
            with psycopg.connect(standby.dsn(), autocommit=True) as connection:
                connection.execute("SELECT pg_promote()")
                connection.execute(
                    "UPDATE celery_taskmeta SET status = 'REVOKED' WHERE task_id = %s",
                    [task_id],
                )
            with fail_after(20), pytest.raises(TaskAborted):
                await waiting
            assert (await client.abort(str(uuid4()))).answer == "requested"
            await listening(client)


def replicated(standby: ThrowawayServer, task_id: str) -> None:
    """Return when the standby has the request."""
    statement = "SELECT count(*) FROM aioabort_request WHERE task_id = %s"
    with psycopg.connect(standby.dsn(), autocommit=True) as connection:
        block_until(lambda: connection.execute(statement, [task_id]).fetchone() == (1,))


async def test_a_wait_that_begins_in_an_outage(
    network: Network, make_app: MakeApp, app: Celery, task_id: str
) -> None:
    """Without an open client, a wait goes on all the same, until its timeout.

    cut | wait() cannot open a client | mended | the client is opened, and waits
    """
    result: AbortableAsyncResult[int] = AbortableAsyncResult(
        task_id, app=make_app(network.dsn, aioabort_poll_interval=0.1)
    )
    await network.cut()
    with pytest.raises(WaitTimeout, match="PostgreSQL could not be asked"):
        await result.wait(0.5)
    with pytest.raises(StoreUnavailable):
        await result.wait(0)
    with pytest.raises(StoreUnavailable):
        await result.snapshot()
    waiting = asyncio.create_task(result.wait())
    await end(app, task_id, 7)
    await network.mend()
    with fail_after(BOUND):
        assert await waiting == 7
