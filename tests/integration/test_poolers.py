"""A connection pooler in front of PostgreSQL: it is detected and probed.

The tests run the real PgBouncer; without one they are skipped.
"""

import asyncio
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import pytest
from anyio import fail_after, sleep, to_thread
from celery import Celery
from celery.app.trace import build_tracer
from click.testing import CliRunner

from aioabort import (
    AbortableTask,
    AbortClient,
    StoreError,
    TaskAborted,
    current_token,
)
from aioabort.cli.group import main
from aioabort.postgres.request_store import RequestStore
from aioabort.timing import Timing
from tests.integration.steps import end, listening, start_run
from tests.support.apps import MakeApp
from tests.support.pgbouncer import PgBouncer, needs_pgbouncer, running_pgbouncer
from tests.support.waiting import NEVER_POLLED, until

pytestmark = needs_pgbouncer


#: Only in a URL's percent-encoding is this a password.
PASSWORD = "p@s:s/w?o#r%d& 'ü\\"


#: Starts a PgBouncer in a mode, with more settings.
Start = Callable[..., PgBouncer]


@pytest.fixture
def bouncer(dsn: str) -> Iterator[Start]:
    """Starts a PgBouncer before ``dsn``: ``bouncer("transaction", "a = setting")``."""
    with ExitStack() as stack:
        yield lambda mode, *more: stack.enter_context(
            running_pgbouncer(dsn, mode, *more)
        )


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the pooler may read, which is another user when we are root."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def certify(key: Path, certificate: Path) -> None:
    """Make a key, and a certificate for 127.0.0.1 that it signs itself."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=pooler"
    subject = ["-addext", "subjectAltName = IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        [*command.split(), *subject, *files], check=True, capture_output=True
    )


async def is_notified(pooled: Celery, app: Celery, store: RequestStore) -> None:
    """Let a client of *pooled* wait for a task that ends in *app*."""
    task_id = str(uuid4())
    async with AbortClient(pooled) as client:
        await listening(client)
        waiting = asyncio.create_task(client.wait(task_id))
        await sleep(0.1)
        await end(app, task_id, "value")
        await store.notify_clients([task_id])
        with fail_after(5):
            assert await waiting == "value"


async def test_a_pooler_of_sessions_lets_notifications_through(
    bouncer: Start, make_app: MakeApp, app: Celery, store: RequestStore
) -> None:
    """A pooler that delivers the probe is used like PostgreSQL itself."""
    pooled = make_app(bouncer("session").dsn, aioabort_poll_interval=NEVER_POLLED)
    await is_notified(pooled, app, store)


async def test_a_pooler_of_transactions_is_polled_through(
    bouncer: Start, make_app: MakeApp, app: Celery
) -> None:
    """LISTEN would have no effect: the client polls, says why, and is as fast as it says.

    Two server connections are lent in turns to all statements, so that a statement
    which was prepared on one is soon executed on the other.
    """
    pooled = make_app(bouncer("transaction").dsn, aioabort_poll_interval=0.2)
    task_ids = [str(uuid4()) for _ in range(50)]
    async with AbortClient(pooled) as client:
        waiting = [asyncio.create_task(client.wait(task_id)) for task_id in task_ids]
        await until(lambda: "pooler" in (client.health().reason or ""))
        health = client.health()
        assert (health.mode, health.staleness) == ("poll", 0.2)
        assert "aioabort_listen_dsn" in (health.reason or "")
        receipts = await asyncio.gather(*map(client.abort, task_ids))
        assert all(receipt.answer == "requested" for receipt in receipts)
        for task_id in task_ids:
            await end(app, task_id, task_id)
        with fail_after(10):
            assert await asyncio.gather(*waiting) == task_ids
        assert client.health().is_connected
        assert client.health().last_error is None


async def test_a_direct_address_for_the_listener_helps(
    bouncer: Start,
    dsn: str,
    make_app: MakeApp,
    app: Celery,
    store: RequestStore,
) -> None:
    """With ``aioabort_listen_dsn`` beside a pooled address, notifications come."""
    pooled = make_app(
        bouncer("transaction").dsn,
        aioabort_listen_dsn=dsn,
        aioabort_poll_interval=NEVER_POLLED,
    )
    await is_notified(pooled, app, store)


async def test_a_pooler_is_probed_again(
    bouncer: Start,
    make_app: MakeApp,
) -> None:
    """An operator may change the mode of the pooler, and the client finds out.

    transaction: refused | session: probed again, listens | transaction: refused
    """
    timing = Timing(probe_interval=0.1)
    pooler = bouncer("transaction")
    async with AbortClient(make_app(pooler.dsn, aioabort_timing=timing)) as client:
        await until(lambda: "pooler" in (client.health().reason or ""))
        pooler.configure("session")
        pooler.reload()
        await listening(client)
        pooler.configure("transaction")
        pooler.reload()
        await until(lambda: client.health().mode == "poll")


async def test_a_refused_probe_leaves_no_connection_listening(
    bouncer: Start, make_app: MakeApp
) -> None:
    """The pooler's server connections do not go on listening."""
    pooler = bouncer("transaction")
    async with AbortClient(make_app(pooler.dsn)) as client:
        await until(lambda: "pooler" in (client.health().reason or ""))
        connections = [
            await asyncpg.connect(pooler.dsn, statement_cache_size=0) for _ in range(2)
        ]
        transactions = [connection.transaction() for connection in connections]
        for connection, transaction in zip(connections, transactions, strict=True):
            await transaction.start()
            channels = await connection.fetch("SELECT pg_listening_channels()")
            assert not channels
        for connection in connections:
            await connection.close()


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_a_worker_sees_aborts_through_a_pooler(
    bouncer: Start, make_app: MakeApp, store: RequestStore, mode: str
) -> None:
    """A request arrives by notification if that is possible, otherwise by the poll."""
    interval = NEVER_POLLED if mode == "session" else 0.2
    pooled = make_app(bouncer(mode).dsn, aioabort_poll_interval=interval)
    runs = [await to_thread.run_sync(start_run, pooled) for _ in range(5)]
    task_ids = [run.task_id for run in runs]
    await store.request_aborts(task_ids, "why")

    async def all_are_aborted() -> bool:
        # Notified again each time: nothing arrives before the pooler has been probed.
        await store.notify_workers(task_ids)
        return all(run.is_aborted() for run in runs)

    await until(all_are_aborted)


def with_our_backend(
    pooler: PgBouncer, make_app: MakeApp, poll_interval: float
) -> Celery:
    """Make an app that stores results by our own backend, through *pooler*."""
    return make_app(
        pooler.dsn,
        result_backend=f"aioabort+{pooler.dsn}",
        task_track_started=True,
        aioabort_poll_interval=poll_interval,
    )


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_our_backend_stores_through_a_pooler(
    bouncer: Start, make_app: MakeApp, mode: str
) -> None:
    """Results and groups are stored, on whichever server connection a statement runs.

    Of two apps' connections, one is lent what the other has just given back.
    """
    pooler = bouncer(mode)
    # What differs in a setting has an agent, and so a connection, of its own.
    apps = [with_our_backend(pooler, make_app, 1 + number) for number in range(2)]
    others: dict[Celery, Celery] = dict(zip(apps, reversed(apps), strict=True))

    def keep(app: Celery, number: int) -> None:
        backend: Any = app.backend
        task_id = str(uuid4())
        for state in ("STARTED", "PROGRESS", "SUCCESS"):
            backend.store_result(task_id, number, state)
        group = app.GroupResult(task_id, [app.AsyncResult(task_id)])
        group.save()
        other: Any = others[app].backend
        assert other.get_result(task_id) == number
        assert other.restore_group(task_id).as_tuple() == group.as_tuple()
        other.delete_group(task_id)
        other.forget(task_id)
        assert not backend.task_result_exists(task_id)

    with fail_after(30):
        async with asyncio.TaskGroup() as group:
            for number in range(40):
                app = apps[number % 2]
                group.create_task(asyncio.to_thread(keep, app, number))


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_our_backend_asks_at_the_start_through_a_pooler(
    bouncer: Start, make_app: MakeApp, mode: str
) -> None:
    """The statement that stores STARTED finds a request; later ones arrive, too.

    By notification if that is possible, otherwise by the poll.
    """
    interval = NEVER_POLLED if mode == "session" else 0.2
    app = with_our_backend(bouncer(mode), make_app, interval)
    begun: list[str] = []

    @app.task(base=AbortableTask, shared=False, name=mode)
    def stopping() -> None:
        token = current_token()
        begun.append(token.task_id)
        assert token.wait(10)
        token.raise_if_aborted()

    stopping.bind(app)
    run = build_tracer(mode, app.tasks[mode], app=app)

    def trace(task_id: str) -> None:
        request = {"id": task_id, "hostname": "worker@host", "delivery_info": {}}
        run(task_id, (), {}, request)

    async with AbortClient(app) as client:
        wanted = "notify" if mode == "session" else "poll"
        await until(lambda: client.health().mode == wanted)
        await client.abort("before", reason="why")
        await to_thread.run_sync(trace, "before")
        assert begun == []
        waiting = asyncio.create_task(client.wait("after", 15))
        tracing = asyncio.create_task(asyncio.to_thread(trace, "after"))
        await until(lambda: begun == ["after"])
        assert (await client.snapshot("after")).state == "STARTED"
        await client.abort("after", reason="why")
        with fail_after(10), pytest.raises(TaskAborted, match="why"):
            await waiting
        await tracing
        assert (await client.snapshot("before")).state == "REVOKED"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
async def test_tls_and_a_password_of_odd_characters(
    bouncer: Start, make_app: MakeApp, dsn: str, open_folder: Path
) -> None:
    """An encrypted address with a certificate to verify works, and keeps its secret."""
    key, certificate, users = (open_folder / name for name in ("key", "cert", "users"))
    certify(key, certificate)
    users.write_text(f'"anybody" "{PASSWORD}"\n')
    key.chmod(0o644)
    pooler = bouncer(
        "session",
        "auth_type = scram-sha-256",
        f"auth_file = {users}",
        "client_tls_sslmode = require",
        f"client_tls_key_file = {key}",
        f"client_tls_cert_file = {certificate}",
    )
    login = f"anybody:{quote(PASSWORD, safe='')}"
    verified = f"?sslmode=verify-full&sslrootcert={certificate}"
    app = make_app(dsn, aioabort_dsn=pooler.dsn_of(login) + verified)
    async with AbortClient(app) as client:
        await listening(client)
        assert (await client.abort(str(uuid4()))).answer == "requested"
    for address in (
        pooler.dsn_of("anybody:wrong") + verified,
        pooler.dsn_of(login) + "?sslmode=disable",
        pooler.dsn_of(login) + "?sslmode=verify-full&sslrootcert=/etc/hostname",
    ):
        with fail_after(20), pytest.raises(StoreError) as caught:
            await AbortClient(make_app(dsn, aioabort_dsn=address)).open()
        assert PASSWORD not in str(caught.value)
        assert quote(PASSWORD, safe="") not in str(caught.value)


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_the_doctor_finds_a_pooler(
    bouncer: Start, make_app: MakeApp, mode: str
) -> None:
    """It reports the pooler, and whether notifications arrive."""
    app = make_app(bouncer(mode).dsn)
    result = CliRunner().invoke(main, ["doctor"], obj=SimpleNamespace(app=app))

    assert "ok   behind a connection pooler" in result.stdout
    if mode == "session":
        assert "ok   notify" in result.stdout
    else:
        assert "BAD  poll only, every 1 s: a connection pooler" in result.stdout
    assert result.exit_code == (0 if mode == "session" else 1)
