"""The table, roles with the least privilege, and failover, on a server of their own."""

import asyncio
import traceback
from collections.abc import Iterator

import psycopg
import pytest
from celery import Celery
from celery.exceptions import BackendError
from sqlalchemy.exc import DatabaseError

from aioabort import AbortClient, StoreError
from aioabort.postgres.pool import open_pool
from aioabort.postgres.request_store import open_request_store
from aioabort.settings import read_settings
from aioabort.testing.postgres import throwaway_postgres
from aioabort.worker.agent.agent import stop_agents
from tests.support.databases import celery_url
from tests.support.programs import free_port

from .pages import blocks_of
from .reader import Reader

PAGE = "docs/how-to/postgresql.md"

PROJECT = """
from celery import Celery
from aioabort import AbortableTask

app = Celery("proj")
app.conf.aioabort_create_tables = {create_tables}

@app.task(bind=True, base=AbortableTask)
def stopping(self):
    self.update_state(state="PROGRESS")
    self.abort_token.wait()
    self.raise_if_aborted()
"""

#: Sends a task, aborts it and awaits its end.
ROUND = """
import asyncio
from aioabort import AbortClient, TaskAborted
from proj import app, stopping

async def main():
    async with AbortClient(app) as client:
        result = await client.send(stopping)
        while (await result.snapshot()).state != "PROGRESS":
            await asyncio.sleep(0.05)
        await result.abort()
        try:
            await result.wait(60)
        except TaskAborted:
            print("stopped")

asyncio.run(main())
"""

#: Aborts any id.
CONNECT = """
import asyncio
from aioabort import AbortClient
from proj import app

async def main():
    async with AbortClient(app) as client:
        print((await client.abort("some-id")).answer)

asyncio.run(main())
"""


#: In privileges that only some clients and workers need.
MORE_RIGHTS = ("GRANT DELETE", "tasksetmeta")


@pytest.fixture
def port() -> int:
    """A port that no program listens on."""
    return free_port()


@pytest.fixture
def empty_dsn(port: int) -> Iterator[str]:
    """A database on a server of its own, as roles belong to a server."""
    settings = {"listen_addresses": "127.0.0.1", "port": str(port)}
    with throwaway_postgres(settings=settings) as server:
        yield server.dsn()


def as_role(role: str, url: str) -> str:
    """Return the address for *role*."""
    return url.replace("postgres@", f"{role}@")


def test_page(reader: Reader, port: int) -> None:
    """The roles can do what they are for, with the rights of the page."""

    def become(role: str) -> None:
        reader.settings["result_backend"] = celery_url(as_role(role, reader.dsn))
        reader.give("proj.py", PROJECT.format(create_tables=role == "postgres"))

    become("postgres")
    reader.give("round.py", ROUND)
    reader.give("connect.py", CONNECT)
    reader.follow(until="GRANT DELETE")
    become("app_worker")
    reader.start_worker()
    assert "permission denied" in reader.run("celery -A proj aioabort cleanup")
    become("app_web")
    assert reader.run("python round.py") == "stopped\n"
    assert "permission denied" not in reader.stop_worker()

    reader.replaced["//app@db1,db2/app"] = (
        f"//app_web@127.0.0.1:1,127.0.0.1:{port}/postgres"
    )
    reader.follow()
    assert reader.run("python connect.py") == "requested\n"
    become("app_worker")
    assert reader.run("celery -A proj aioabort cleanup") == "0 abort requests deleted\n"
    assert reader.run("celery -A proj call celery.backend_cleanup")
    cleanup = "python -c 'from proj import app; app.backend.cleanup()'"
    assert reader.run(cleanup) == ""


@pytest.mark.parametrize("backend", ["db+postgresql+psycopg", "aioabort+postgresql"])
@pytest.mark.parametrize("role", ["app_web", "app_worker"])
def test_no_right_is_too_many(empty_dsn: str, role: str, backend: str) -> None:
    """Without any one of the rights that the page grants, something fails.

    Which result backend stores makes no difference.
    """
    owner = Celery("owner", backend=celery_url(empty_dsn), set_as_current=False)
    owner.backend.ResultSession().close()
    asyncio.run(open_and_close(owner))
    rights = [
        right
        for block in blocks_of(PAGE)
        if block.language == "sql" and not any(map(block.text.count, MORE_RIGHTS))
        for right in block.text.split(";")
        if right.strip().startswith("GRANT") and right.endswith(role)
    ]
    url = as_role(role, empty_dsn).replace("postgresql", backend, 1)
    app = Celery("app", backend=url, set_as_current=False)
    app.conf.aioabort_create_tables = False

    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN".encode())
        for right in rights:
            connection.execute(right.encode())
        assert is_able(role, app)
        assert len(rights) == 7
        for right in rights:
            revoke = right.replace("GRANT", "REVOKE").replace(" TO ", " FROM ")
            connection.execute(revoke.encode())
            connection.execute(b"TRUNCATE celery_taskmeta, aioabort_request")
            assert not is_able(role, app), right
            connection.execute(right.encode())


async def open_and_close(app: Celery) -> None:
    """Have the table created."""
    async with AbortClient(app):
        pass


def is_able(role: str, app: Celery) -> bool:
    """Whether the role can do all that its side does."""
    work = produce if role == "app_web" else serve
    try:
        asyncio.run(work(app))
    except (StoreError, BackendError, DatabaseError) as error:
        # Celery wraps it up several times, or, before 5.7, not at all.
        if "permission denied" not in "".join(traceback.format_exception(error)):
            raise
        return False
    finally:
        # Otherwise the next check would use the cached connection and its state.
        stop_agents()
    return True


async def produce(app: Celery) -> None:
    """Do what a client does."""
    async with AbortClient(app) as client:
        await client.abort("some-id")
        await client.abort("some-id", grace=5)
        await client.snapshot("some-id")
        await asyncio.to_thread(app.backend.get_task_meta, "some-id")
        await client.requests()
        with pytest.raises(TimeoutError):
            await client.wait("some-id", timeout=0)


async def serve(app: Celery) -> None:
    """Do what a worker does."""
    for state in ("STARTED", "PROGRESS"):
        await asyncio.to_thread(app.backend.store_result, "some-id", None, state)
    settings = read_settings(app)
    async with open_pool(settings.dsn, 1, settings.timing) as pool:
        store = await open_request_store(pool, settings)
        # As it does for an abort of Flower's.
        await store.request_aborts(["some-id"])
        request = (await store.read_aborts(["some-id"]))["some-id"].request
        assert request is not None
        await store.record_seen([request], [0.0], "a worker")
        await store.claim_kill(request)
        await store.claim_overdue_kills(0)
        await store.record_outcomes([request], ["aborted"], [0.0])
        await store.notify_clients(["some-id"])
