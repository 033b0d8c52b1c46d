"""All processes of an app use one table, whatever their role, pool or search_path."""

import asyncio
from typing import Any, TypeAlias

import asyncpg
import pytest
from celery import Celery, states

from aioabort import AbortClient, StoreError, StoreUnavailable
from aioabort.postgres import schema
from aioabort.postgres.connection import connect
from aioabort.postgres.request_store import RequestStore, open_request_store
from aioabort.settings import read_settings
from tests.integration.conftest import Stranger
from tests.integration.steps import end, listening
from tests.support.apps import MakeApp
from tests.support.databases import NewDatabase, query
from tests.support.waiting import until

Database: TypeAlias = "asyncpg.Connection[Any]"


@pytest.fixture
def web(dsn: str, stranger: Stranger, make_app: MakeApp) -> Celery:
    """An app whose role has a schema of its own before ``public`` in its search_path."""
    role = stranger.role
    query(dsn, f"CREATE SCHEMA web AUTHORIZATION {role}")
    query(dsn, f"ALTER ROLE {role} SET search_path = web, public")
    query(dsn, f"GRANT ALL ON SCHEMA public TO {role}")
    query(dsn, f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    query(dsn, f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
    return make_app(dsn, aioabort_dsn=stranger.dsn(dsn))


async def test_roles_that_store_results_may_use_a_table_that_another_role_creates(
    web: Celery, dsn: str, stranger: Stranger, make_app: MakeApp, task_id: str
) -> None:
    """A worker's role owns Celery's table, and a client's role is the first to come.

    web: creates the table, aborts | worker: sees the abort, records that it did
    """
    query(dsn, "DROP TABLE aioabort_request")
    query(
        dsn, f"CREATE ROLE {stranger.role}_worker LOGIN PASSWORD '{stranger.password}'"
    )
    worker = Stranger(f"{stranger.role}_worker", stranger.password)
    query(dsn, f"GRANT ALL ON SCHEMA public TO {worker.role}")
    query(dsn, f"GRANT ALL ON celery_taskmeta, task_id_sequence TO {worker.role}")
    try:
        async with AbortClient(web) as client:
            await client.abort(task_id)
        settings = read_settings(make_app(worker.dsn(dsn)))
        async with connect(settings.dsn, settings.timing) as connection:
            store = await open_request_store(connection, settings)
            request = (await store.read_aborts([task_id]))[task_id].request
            assert request is not None
            assert await store.record_seen([request], [0.0], "worker")
            assert task_id not in await store.request_aborts([task_id])
        readers = query(
            dsn,
            "SELECT count(*) FROM pg_class, aclexplode(relacl) AS a"
            " WHERE relname = 'aioabort_request' AND a.grantee = 0",
        )
        assert readers == [(0,)]
    finally:
        query(dsn, f"DROP OWNED BY {worker.role}")
        query(dsn, f"DROP ROLE {worker.role}")


async def test_two_roles_create_the_table_at_the_same_time(
    web: Celery, dsn: str, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second role finds the table, whose indexes it may not create.

    web: finds no table | worker: finds none, creates it | web: fails to create it
    """
    query(dsn, "DROP TABLE aioabort_request")
    create = schema.create_request_table

    async def create_second(*args: Any) -> None:
        monkeypatch.undo()
        async with AbortClient(make_app(dsn)):
            await create(*args)

    monkeypatch.setattr(schema, "create_request_table", create_second)
    async with AbortClient(web) as client:
        assert await client.abort("a")
    async with AbortClient(make_app(dsn)) as client:
        assert [request.task_id for request in await client.requests()] == ["a"]


@pytest.fixture
def decoy(web: Celery) -> None:
    """A request table that comes first in the search_path of ``web``."""
    create = (
        "CREATE TABLE aioabort_request (LIKE public.aioabort_request INCLUDING ALL)"
    )
    query(web.conf.aioabort_dsn, create)


async def test_the_table_is_created_beside_celerys(
    web: Celery, dsn: str, make_app: MakeApp, task_id: str
) -> None:
    """A role that comes first creates the table where all others find it."""
    query(dsn, "DROP TABLE aioabort_request")
    async with AbortClient(web) as client:
        await client.abort(task_id, reason="why")
    async with AbortClient(make_app(dsn)) as client:
        [request] = await client.requests()
    assert (request.task_id, request.reason) == (task_id, "why")
    assert query(
        dsn, "SELECT schemaname FROM pg_tables WHERE tablename = 'aioabort_request'"
    ) == [("public",)]


@pytest.mark.usefixtures("decoy")
async def test_a_table_that_comes_first_in_the_search_path_is_not_used(
    web: Celery, store: RequestStore, task_id: str
) -> None:
    """Roles share the table and the channel, even if one sees another table by name."""
    settings = read_settings(web)
    async with connect(settings.dsn, settings.timing) as connection:
        webs = await open_request_store(connection, settings)
        await webs.request_aborts([task_id])
    assert (await store.read_aborts([task_id]))[task_id].request is not None
    assert webs.request_channel == store.request_channel
    assert webs.done_channel == store.done_channel


async def test_a_search_path_that_changes_later_changes_nothing(
    app: Celery, task_id: str
) -> None:
    """A pooler may run each statement in a session with another search_path."""
    settings = read_settings(app)
    async with connect(settings.dsn, settings.timing) as connection:
        store = await open_request_store(connection, settings)
        await connection.execute("SET search_path = pg_catalog")
        request = (await store.request_aborts([task_id]))[task_id]
        await store.record_seen([request], [0.0], "node")
        await store.settle_requests({task_id: "aborted"})
        row = (await store.read_snapshots([task_id]))[task_id]
    assert row.state == "ABORTED"
    assert row.request is not None
    assert row.request.outcome == "aborted"


async def test_the_sequence_may_be_in_another_schema(
    app: Celery, dsn: str, database: Database, task_id: str
) -> None:
    """Celery finds its sequence by the search_path, and so does aioabort."""
    query(dsn, "CREATE SCHEMA keys")
    query(dsn, "ALTER SEQUENCE task_id_sequence SET SCHEMA keys")
    await database.execute("SET search_path = public, keys")
    store = await open_request_store(database, read_settings(app))
    assert task_id in await store.request_aborts([task_id])


@pytest.mark.usefixtures("decoy")
async def test_our_result_backend_reads_the_same_requests(
    web: Celery, store: RequestStore, task_id: str
) -> None:
    """A later run of a settled id stores its state, as the request's outcome allows."""
    request = (await store.request_aborts([task_id]))[task_id]
    await store.record_outcomes([request], ["aborted"], [0.0])
    web.conf.result_backend = f"aioabort+{web.conf.aioabort_dsn}"
    await end(web, task_id, None, states.STARTED)
    assert (await store.read_states([task_id]))[task_id].state == "STARTED"


async def test_a_lent_pool_needs_no_search_path(
    app: Celery, dsn: str, database: Database, task_id: str
) -> None:
    """The tables are those of our own connection; the pool's search_path is its own."""
    await database.execute("CREATE SCHEMA tenant")
    path = {"search_path": "tenant"}
    async with (
        asyncpg.create_pool(dsn, min_size=0, server_settings=path) as pool,
        AbortClient(app, pool=pool) as client,
    ):
        assert (await client.abort(task_id)).answer == "requested"
    assert await database.fetchval("SELECT task_id FROM aioabort_request") == task_id
    assert (
        await database.fetchval("SELECT to_regclass('tenant.aioabort_request')") is None
    )


async def test_a_lent_pool_of_another_database_is_refused(
    app: Celery, dsn: str, new_database: NewDatabase
) -> None:
    """The error names both databases and both tables, and no table is created."""
    with new_database() as other:
        async with asyncpg.create_pool(other, min_size=0) as pool:
            with pytest.raises(StoreError, match="leads to database") as caught:
                await AbortClient(app, pool=pool).open()
    assert not isinstance(caught.value, StoreUnavailable)
    text = str(caught.value)
    for address in (dsn, other):
        assert repr(address.rpartition("/")[2].partition("?")[0]) in text
    assert text.count('"public"."aioabort_request" (oid ') == 2
    assert "but result_backend to database" in text


async def test_a_lent_pool_of_a_database_without_the_table_is_refused(
    app: Celery, empty_dsn: str
) -> None:
    """The error says that the table is missing there."""
    async with asyncpg.create_pool(empty_dsn, min_size=0) as pool:
        with pytest.raises(StoreError, match=r'no "public"\."aioabort_request", but'):
            await AbortClient(app, pool=pool).open()
    assert query(empty_dsn, "SELECT FROM pg_tables WHERE schemaname = 'public'") == []


async def test_an_address_to_listen_at_in_another_database_is_named(
    dsn: str, new_database: NewDatabase, make_app: MakeApp
) -> None:
    """Its workers would see no abort of this client, which must not look well."""
    with new_database() as other:
        app = make_app(dsn, aioabort_listen_dsn=other)
        async with AbortClient(app) as client:
            await until(lambda: client.health().last_error)
            health = client.health()
    assert health.mode == "poll"
    assert "aioabort_listen_dsn leads to database" in (health.reason or "")
    assert "but result_backend to database" in (health.reason or "")


async def test_another_address_of_the_same_table_is_fine(
    web: Celery, dsn: str, task_id: str
) -> None:
    """Another role listens, and finds the table that statements use."""
    web.conf.aioabort_listen_dsn = dsn
    async with AbortClient(web) as client:
        await listening(client)
        waiting = asyncio.create_task(client.wait(task_id))
        await until(lambda: client.health().waiters)
        await end(web, task_id, "value")
        assert await waiting == "value"


CODECS: dict[str, dict[str, Any]] = {
    "text": {"encoder": str.strip, "decoder": str},
    "varchar": {"encoder": str, "decoder": str.upper},
    "bool": {"encoder": lambda _: "f", "decoder": str},
    "int4": {"encoder": str, "decoder": float},
    "int8": {"encoder": str, "decoder": str},
    "float8": {"encoder": str, "decoder": lambda _: 1 / 0},
    "bytea": {"encoder": lambda _: 1 / 0, "decoder": str},
    "timestamptz": {"encoder": lambda moment: moment.isoformat(), "decoder": str},
}


@pytest.mark.parametrize("type_name", CODECS)
async def test_a_codec_that_changes_values_is_refused(
    app: Celery, dsn: str, type_name: str
) -> None:
    """It would change ids, moments and results; the error names its type."""

    async def set_codec(connection: Any) -> None:
        codec = CODECS[type_name]
        await connection.set_type_codec(type_name, schema="pg_catalog", **codec)

    async with asyncpg.create_pool(dsn, min_size=0, init=set_codec) as pool:
        with pytest.raises(StoreError, match=f"codec for {type_name}, ") as caught:
            await AbortClient(app, pool=pool).open()
    assert not isinstance(caught.value, StoreUnavailable)


async def test_codecs_that_change_nothing_are_fine(
    app: Celery, dsn: str, task_id: str
) -> None:
    """A codec for a type that aioabort does not use, and one that keeps all values."""

    async def set_codecs(connection: Any) -> None:
        for type_name in ("jsonb", "text"):
            await connection.set_type_codec(
                type_name, encoder=str, decoder=str, schema="pg_catalog"
            )

    async with (
        asyncpg.create_pool(dsn, min_size=0, init=set_codecs) as pool,
        AbortClient(app, pool=pool) as client,
    ):
        assert (await client.abort(task_id)).answer == "requested"
