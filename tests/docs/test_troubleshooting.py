"""Each symptom, reproduced as the page describes it."""

import asyncio
import re
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import psycopg
import pytest
from celery import Celery

from aioabort import AbortableTask, AbortClient
from aioabort.concurrency.gevent import refuse_eventlet
from aioabort.postgres.schema import schema_sql
from aioabort.postgres.tables import Tables
from aioabort.settings import read_settings
from aioabort.testing.postgres import throwaway_postgres
from aioabort.timing import Timing
from tests.support.apps import MakeApp

from .pages import PAGES
from .reader import Reader, matches

PAGE = "docs/how-to/troubleshooting.md"

#: Reproduces a message with an app, whose settings it may change.
Reproduce = Callable[[Celery], object]


def test_symptoms(reader: Reader) -> None:
    """Each task misbehaves as the page says."""
    reader.follow()


def messages() -> list[str]:
    """Return the messages that the page explains."""
    table = PAGES[PAGE].read_text().partition("## Messages")[2]
    return re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)


async def ask(app: Celery) -> None:
    """Connect, and read the requests."""
    async with AbortClient(app) as client:
        await client.requests()


def ask_with(**settings: Any) -> Reproduce:
    """Return a function that uses a client with these settings."""

    def reproduce(app: Celery) -> None:
        app.conf.update(settings)
        asyncio.run(ask(app))

    return reproduce


def ask_as_stranger(create_tables: str) -> Reproduce:
    """Return a function that uses a client as a role without any privilege."""

    def reproduce(_app: Celery) -> None:
        with throwaway_postgres() as server:
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute("CREATE ROLE stranger LOGIN")
                connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
                connection.execute(create_tables.encode())
            dsn = server.dsn().replace("postgres@", "stranger@")
            app = Celery("stranger", set_as_current=False)
            ask_with(aioabort_dsn=dsn)(app)

    return reproduce


def send_eagerly(app: Celery) -> None:
    """Send a task that would run at once."""
    app.conf.task_always_eager = True

    @app.task(name="proj.index", base=AbortableTask, shared=False)
    def index() -> None:
        """Do nothing."""

    async def send() -> None:
        async with AbortClient(app) as client:
            await client.send(index)

    asyncio.run(send())


def forget_await(app: Celery) -> None:
    """Call abort() as celery.contrib.abortable's is called."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        AbortClient(app).result("some-id").abort()
    raise RuntimeWarning(str(caught[0].message))


def ask_while_locked(app: Celery) -> None:
    """Abort a task again while another transaction holds its abort request."""
    app.conf.aioabort_timing = Timing(busy_timeout=0.1)

    async def abort_twice() -> None:
        async with AbortClient(app) as client:
            await client.abort("a")
            with psycopg.connect(read_settings(app).dsn.url) as connection:
                connection.execute("SELECT FROM aioabort_request FOR UPDATE")
                await client.abort("a")

    asyncio.run(abort_twice())


def use_closed(app: Celery) -> None:
    """Use a client that was not opened."""
    asyncio.run(AbortClient(app).requests())


def patch_eventlet(_app: Celery) -> None:
    """Pretend that eventlet has patched this process."""
    patcher = ModuleType("eventlet.patcher")
    patcher.is_monkey_patched = lambda _: True
    sys.modules["eventlet.patcher"] = patcher
    try:
        refuse_eventlet()
    finally:
        del sys.modules["eventlet.patcher"]


REPRODUCED: dict[str, Reproduce] = {
    "permission denied for table": ask_as_stranger(
        schema_sql(Tables("celery_taskmeta"))
    ),
    "permission denied for schema": ask_as_stranger("SELECT 1"),
    "the table": ask_with(aioabort_create_tables=False),
    "aioabort needs PostgreSQL: the result backend is 'redis'": ask_with(
        result_backend="redis://localhost"
    ),
    "aioabort needs PostgreSQL: the result backend is 'disabled'": ask_with(
        result_backend=None
    ),
    "aioabort has no setting": ask_with(aioabort_pol_interval=1),
    "aioabort_dsn: asyncpg": ask_with(
        aioabort_dsn="postgresql://localhost/app?connect_timeouts=1"
    ),
    "aioabort_dsn: it is not clear": ask_with(
        aioabort_dsn="postgresql://app:p@ss/word@localhost/app"
    ),
    "PostgreSQL is away": ask_with(aioabort_dsn="postgresql://app@127.0.0.1:1/app"),
    "PostgreSQL is busy": ask_while_locked,
    "The client is not open": use_closed,
    "coroutine": forget_await,
    "With task_always_eager": send_eagerly,
    "the eventlet pool": patch_eventlet,
}


@pytest.mark.parametrize("message", messages())
def test_messages(empty_dsn: str, make_app: MakeApp, message: str) -> None:
    """Each message has the cause that the page gives."""
    [reproduce] = [
        reproduce
        for beginning, reproduce in REPRODUCED.items()
        if message.startswith(beginning)
    ]

    with pytest.raises(Exception) as raised:  # noqa: PT011 - the message is compared
        reproduce(make_app(empty_dsn))

    assert matches(f"…{message}…", str(raised.value)), raised.value
