"""A connection pooler before PostgreSQL: found, and asked what it lets through.

The real PgBouncer, as Debian has it; without one these tests are skipped.
"""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import asyncpg
import psycopg.conninfo
import pytest
from anyio import fail_after, sleep, to_thread
from celery import Celery
from celery.app.task import Context
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
from aioabort.postgres import listener
from aioabort.postgres.store import Store
from aioabort.worker.agent import agent_for, stop_agents
from aioabort.worker.run import Run
from tests.integration.steps import end, until

MakeApp = Callable[..., Celery]

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed")

#: So long that a test which depends on the poll would time out.
NEVER_POLLED = 3_600.0

START_TIMEOUT = 10.0


#: Only in a URL's percent-encoding is this a password.
PASSWORD = "p@s:s/w?o#r%d& 'ü\\"


class Bouncer:
    """A PgBouncer of our own, before one database."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self._file = folder / "pgbouncer.ini"
        self._folder = folder
        self._target = psycopg.conninfo.conninfo_to_dict(dsn)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self._port = server.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """The address of the database, through the pooler."""
        return self.dsn_of("anybody")

    def dsn_of(self, login: str) -> str:
        """The address of the database for a user, or for a user and a password."""
        return f"postgresql://{login}@127.0.0.1:{self._port}/{self._target['dbname']}"

    def configure(self, mode: str, *more: str) -> None:
        """Write the configuration: few server connections, lent by *mode*."""
        target = " ".join(
            f"{name}={self._target[name]}"
            for name in ("host", "port", "dbname", "user", "password")
            if name in self._target
        )
        self._file.write_text(
            f"[databases]\n{self._target['dbname']} = {target}\n"
            "[pgbouncer]\n"
            "listen_addr = 127.0.0.1\n"
            f"listen_port = {self._port}\n"
            "unix_socket_dir =\n"
            "auth_type = any\n"
            f"pool_mode = {mode}\n"
            f"default_pool_size = {20 if mode == 'session' else 2}\n"
            f"logfile = {self._folder / 'log'}\n" + "\n".join(more)
        )

    def reload(self) -> None:
        """Have the configuration read again."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def wait_until_it_listens(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port)).close()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return


#: Starts a PgBouncer in a mode, with more settings.
Start = Callable[..., Bouncer]


@contextmanager
def running_bouncer(dsn: str, mode: str, *more: str) -> Iterator[Bouncer]:
    # It refuses to run as root.
    account = "nobody" if os.geteuid() == 0 else None
    with TemporaryDirectory() as name:
        bouncer = Bouncer(Path(name), dsn)
        bouncer.configure(mode, *more)
        if account:
            shutil.chown(name, account)
        bouncer.process = subprocess.Popen(
            [str(PGBOUNCER), "-q", f"{name}/pgbouncer.ini"],
            user=account,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            bouncer.wait_until_it_listens()
            yield bouncer
        finally:
            bouncer.process.kill()
            bouncer.process.wait()


@pytest.fixture
def bouncer(dsn: str) -> Iterator[Start]:
    """Starts a PgBouncer before ``dsn``: ``bouncer("transaction", "a = setting")``."""
    with ExitStack() as stack:
        yield lambda mode, *more: stack.enter_context(running_bouncer(dsn, mode, *more))


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the pooler may read, which is another user when we are root."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(autouse=True)
def no_agents() -> Iterator[None]:
    yield
    stop_agents()


def certify(key: Path, certificate: Path) -> None:
    """Make a key, and a certificate for 127.0.0.1 that it signs itself."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=pooler"
    subject = ["-addext", "subjectAltName = IP:127.0.0.1"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(
        [*command.split(), *subject, *files], check=True, capture_output=True
    )


def start_run(app: Celery) -> Run:
    """Begin a run as a worker's pool does."""
    run = Run(Context(id=str(uuid4()), hostname="worker@host"), agent_for(app))
    run.supervisor.begin(run)
    return run


async def test_a_pooler_of_sessions_lets_notifications_through(
    bouncer: Start, make_app: MakeApp, app: Celery, store: Store
) -> None:
    """A pooler that is asked and passes is used like a server."""
    pooled = make_app(bouncer("session").dsn, aioabort_poll_interval=NEVER_POLLED)
    task_id = str(uuid4())
    async with AbortClient(pooled) as client:
        await until(lambda: client.health().mode == "notify")
        waiting = asyncio.create_task(client.wait(task_id))
        await sleep(0.1)
        await end(app, task_id, "value")
        await store.hint_clients([task_id])
        with fail_after(5):
            assert await waiting == "value"


async def test_a_pooler_of_transactions_is_polled_through(
    bouncer: Start, make_app: MakeApp, app: Celery
) -> None:
    """LISTEN would succeed in vain: the client polls, says why, and keeps its promise.

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
    store: Store,
) -> None:
    """With ``aioabort_listen_dsn`` beside a pooled address, notifications come."""
    pooled = make_app(
        bouncer("transaction").dsn,
        aioabort_listen_dsn=dsn,
        aioabort_poll_interval=NEVER_POLLED,
    )
    task_id = str(uuid4())
    async with AbortClient(pooled) as client:
        await until(lambda: client.health().mode == "notify")
        waiting = asyncio.create_task(client.wait(task_id))
        await sleep(0.1)
        await end(app, task_id, "value")
        await store.hint_clients([task_id])
        with fail_after(5):
            assert await waiting == "value"


async def test_a_pooler_is_asked_again(
    bouncer: Start,
    make_app: MakeApp,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who runs the pooler may change its mode, and the client finds out by itself.

    transaction: refused | session: asked again, listens | transaction: refused
    """
    monkeypatch.setattr(listener, "PROBE_AGAIN", 0.1)
    pooler = bouncer("transaction")
    async with AbortClient(make_app(pooler.dsn)) as client:
        await until(lambda: "pooler" in (client.health().reason or ""))
        pooler.configure("session")
        pooler.reload()
        await until(lambda: client.health().mode == "notify")
        pooler.configure("transaction")
        pooler.reload()
        await until(lambda: client.health().mode == "poll")


async def test_a_refused_probe_leaves_nobody_listening(
    bouncer: Start, make_app: MakeApp
) -> None:
    """The server connections that the pooler lends to others do not go on listening."""
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
    bouncer: Start, make_app: MakeApp, store: Store, mode: str
) -> None:
    """A request arrives by notification where that is possible, and else by the poll."""
    interval = NEVER_POLLED if mode == "session" else 0.2
    pooled = make_app(bouncer(mode).dsn, aioabort_poll_interval=interval)
    runs = [await to_thread.run_sync(start_run, pooled) for _ in range(5)]
    task_ids = [run.task_id for run in runs]
    await store.request(task_ids, "why")
    with fail_after(15):
        while not all(run.is_aborted() for run in runs):
            # Again and again: none comes before the pooler has been asked.
            await store.hint_workers(task_ids)
            await sleep(0.1)


def with_our_backend(
    pooler: Bouncer, make_app: MakeApp, poll_interval: float
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
    """Results and groups are kept, whichever server connection each statement meets.

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
    """The statement that stores STARTED finds a request; a later one, and the end, come.

    By notification where that is possible, and else by the poll.
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
        await until(lambda: client.health().mode == "notify")
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
    """It says that one is there, and whether notifications come through."""
    app = make_app(bouncer(mode).dsn)
    result = CliRunner().invoke(main, ["doctor"], obj=SimpleNamespace(app=app))

    assert "ok   behind a connection pooler" in result.stdout
    if mode == "session":
        assert "ok   notify" in result.stdout
    else:
        assert "BAD  poll only, every 1 s: a connection pooler" in result.stdout
    assert result.exit_code == (0 if mode == "session" else 1)
