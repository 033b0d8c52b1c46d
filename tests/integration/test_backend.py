"""The result backend beside Celery's database backend: the same rows, both ways."""

import asyncio
import logging
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from billiard import Process
from celery import Celery, states
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.backends.database import DatabaseBackend
from celery.contrib.abortable import AbortableAsyncResult as CelerysResult
from celery.exceptions import BackendStoreError
from click.testing import CliRunner
from kombu.exceptions import ContentDisallowed, DecodeError, EncodeError

from aioabort import AbortableTask, AbortClient, ResultTooLarge
from aioabort.backend.backend import PostgresBackend
from aioabort.celery_compat import RETRIES_EVERY_CALL
from aioabort.cli.group import main
from aioabort.timing import Timing
from tests.integration.steps import listening
from tests.support.apps import MakeApp
from tests.support.databases import query_dicts
from tests.support.network import Network
from tests.support.waiting import until

REQUEST: dict[str, Any] = {
    "task": "tests.add",
    "args": [1, "two"],
    "kwargs": {"three": 3},
    "hostname": "worker@host",
    "retries": 2,
    "delivery_info": {"routing_key": "queue"},
    "children": [],
}

STAMPS = {"stamped_headers": ["tenant"], "stamps": {"tenant": ["blue"]}}


@pytest.fixture
def make_backend(make_app: MakeApp) -> Callable[..., Any]:
    """Makes backends: ``make_backend("aioabort", dsn, result_serializer="pickle")``."""

    def make(kind: str, dsn: str, **settings: Any) -> Any:
        app = make_app(dsn, **settings)
        if kind == "aioabort":
            app.conf.result_backend = f"aioabort+{dsn}"
        return app.backend

    return make


@pytest.fixture
def ours(make_backend: Callable[..., Any], dsn: str) -> Any:
    """The backend at ``dsn``."""
    return make_backend("aioabort", dsn)


@pytest.fixture
def theirs(make_backend: Callable[..., Any], dsn: str) -> Any:
    """Celery's at the same."""
    return make_backend("db", dsn)


def row_of(dsn: str, task_id: str) -> dict[str, Any]:
    [row] = query_dicts(
        dsn, "SELECT * FROM celery_taskmeta WHERE task_id = %s", task_id
    )
    return row


@dataclass(frozen=True)
class Case:
    """What is stored of a task, with which settings."""

    name: str
    state: str
    result: Any
    settings: dict[str, Any] = field(default_factory=dict)
    traceback: str | None = None
    request: dict[str, Any] | None = None


PICKLE = {
    "result_serializer": "pickle",
    "result_accept_content": ["json", "pickle"],
}
EXTENDED = {"result_extended": True}

#: The columns of our tables; those of the installed Celery may be fewer.
EVERY_COLUMN = """
    ALTER TABLE celery_taskmeta
        ADD COLUMN IF NOT EXISTS children bytea, ADD COLUMN IF NOT EXISTS stamps bytea
"""

CASES = [
    Case("value", "SUCCESS", {"a": [1, None, "ü"]}),
    Case("nothing", "SUCCESS", None),
    Case("failure", "FAILURE", ValueError("no", 1), traceback="Traceback: ValueError"),
    Case("retry", "RETRY", KeyError("again"), traceback="Traceback"),
    Case("revoked", "REVOKED", ValueError("revoked")),
    Case("started", "STARTED", {"pid": 1, "hostname": "worker@host"}),
    Case("progress", "PROGRESS", {"done": 3}),
    Case("pickle", "SUCCESS", {1, 2}, settings=PICKLE),
    Case("pickle, failure", "FAILURE", ValueError("no"), settings=PICKLE),
    Case("extended", "SUCCESS", 1, settings=EXTENDED, request=REQUEST),
    Case("extended, without a request", "SUCCESS", 1, settings=EXTENDED),
    Case(
        "extended, stamped", "SUCCESS", 1, settings=EXTENDED, request=REQUEST | STAMPS
    ),
    Case("extended, pickle", "SUCCESS", 1, settings=EXTENDED | PICKLE, request=REQUEST),
    Case(
        "children",
        "SUCCESS",
        1,
        request=REQUEST | {"children": [CelerysResult("child", backend=object())]},
    ),
]


def comparable(row: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Leave out what differs between any two stores, and what the other has not."""
    return {key: row[key] for key in {*keys} - {"id", "task_id", "date_done"}}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_row_and_same_meta(
    dsn: str, make_backend: Callable[..., Any], case: Case
) -> None:
    """What one backend stores is what the other does, and each reads the other's.

    Of the columns that the installed Celery has; more, of a later one, do no harm.
    """
    ours, theirs = (
        make_backend(kind, dsn, **case.settings) for kind in ("aioabort", "db")
    )
    query_dicts(dsn, EVERY_COLUMN)
    for name, backend in (("ours", ours), ("theirs", theirs)):
        request = Context(case.request) if case.request else None
        backend.store_result(
            name, case.result, case.state, traceback=case.traceback, request=request
        )

    columns = [column.name for column in theirs.task_cls.__table__.columns]
    assert comparable(row_of(dsn, "ours"), columns) == comparable(
        row_of(dsn, "theirs"), columns
    )
    for stored_by in ("ours", "theirs"):
        read = theirs.get_task_meta(stored_by)
        also = ours.get_task_meta(stored_by)
        assert repr(comparable(also, sorted(read))) == repr(
            comparable(read, sorted(read))
        )


def test_a_name_too_long_for_its_column_is_cut(
    make_backend: Callable[..., Any], dsn: str
) -> None:
    """A task with a long name runs, and its result is stored, which Celery's cannot."""
    backend = make_backend("aioabort", dsn, **EXTENDED)
    context = Context(REQUEST | {"task": "n" * 300})

    backend.store_result("a", {}, "STARTED", request=context)
    backend.store_result("a", 1, "SUCCESS", request=context)

    row = row_of(dsn, "a")
    assert (row["status"], row["name"]) == ("SUCCESS", "n" * 155)


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE", "PROGRESS"])
def test_moment_is_the_servers_time(
    ours: Any, theirs: Any, dsn: str, state: str
) -> None:
    """As Celery's, date_done is in the time zone of the server's sessions."""
    query_dicts(
        dsn, f"ALTER DATABASE \"{dsn_name(dsn)}\" SET timezone = 'Asia/Kolkata'"
    )
    for backend in (ours, theirs):
        backend.store_result(type(backend).__name__, 1, "SUCCESS")
    ours.store_result("a", 1, state)

    moments = [
        row["date_done"]
        for row in query_dicts(dsn, "SELECT date_done FROM celery_taskmeta")
    ]
    assert max(moments) - min(moments) < timedelta(minutes=1)
    now = datetime.now(UTC).replace(tzinfo=None) + timedelta(hours=5, minutes=30)
    assert abs(moments[0] - now) < timedelta(minutes=1)


def dsn_name(dsn: str) -> str:
    return psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]  # type: ignore[return-value]


FINAL = ("SUCCESS", "FAILURE", "REVOKED")
PASSING = ("STARTED", "RETRY", "PROGRESS", "ABORTED")


@pytest.mark.parametrize(
    "before", ["SUCCESS", "FAILURE", "REVOKED", "ABORTED", "STARTED", "RETRY"]
)
@pytest.mark.parametrize("after", [*FINAL, *PASSING])
def test_what_may_follow_what(ours: Any, dsn: str, before: str, after: str) -> None:
    """A result stays; an end is changed by an end only; ABORTED gives way to an end only."""
    ours.store_result("task", "before", before)
    first = row_of(dsn, "task")
    ours.store_result("task", "after", after)

    stays = (
        before == "SUCCESS"
        or (before in {"FAILURE", "REVOKED", "ABORTED"} and after in PASSING)
        or (before, after) == ("FAILURE", "REVOKED")
    )
    row = row_of(dsn, "task")
    assert row["status"] == (before if stays else after)
    if stays:
        assert row == first


def test_abort_settled_before_gives_way_to_a_new_run(ours: Any, dsn: str) -> None:
    """ABORTED that is left of an earlier run of the same id does not hide the new one."""
    ours.store_result("task", None, "ABORTED")
    query_dicts(
        dsn, "UPDATE aioabort_request SET outcome = 'aborted', outcome_at = now()"
    )
    ours.store_result("task", {}, "STARTED")

    assert ours.get_state("task") == "STARTED"


@pytest.mark.parametrize("before", ["FAILURE", "REVOKED", "SUCCESS"])
@pytest.mark.parametrize(
    ("redelivered", "retries"), [(True, 0), (False, 1), (False, 0)]
)
def test_start_of_a_later_run(
    ours: Any, dsn: str, before: str, *, redelivered: bool, retries: int
) -> None:
    """An id that is published anew starts over; what was published before does not."""
    delivery = {"redelivered": redelivered, "routing_key": "q"}
    context = Context(delivery_info=delivery, retries=retries)
    ours.store_result("task", "before", before)
    ours.store_result("task", {}, "STARTED", request=context)

    starts = not redelivered and not retries and before != "SUCCESS"
    assert row_of(dsn, "task")["status"] == ("STARTED" if starts else before)


def test_celerys_abort_is_a_request(ours: Any, dsn: str) -> None:
    """celery.contrib.abortable asks, and progress does not hide it."""
    ours.store_result("task", {"done": 1}, "PROGRESS")
    CelerysResult("task", backend=ours, app=ours.app).abort()
    ours.store_result("task", {"done": 2}, "PROGRESS")

    assert CelerysResult("task", backend=ours, app=ours.app).is_aborted()
    [request] = query_dicts(dsn, "SELECT * FROM aioabort_request")
    assert request["task_id"] == "task"
    assert request["outcome"] is None


def test_celerys_abort_leaves_a_failure_alone(ours: Any) -> None:
    """An abort that comes too late destroys nothing."""
    ours.store_result("task", ValueError("no"), "FAILURE", traceback="Traceback")
    CelerysResult("task", backend=ours, app=ours.app).abort()

    assert ours.get_state("task") == "FAILURE"
    assert ours.get_traceback("task") == "Traceback"


def test_key_of_the_row_stays(ours: Any, dsn: str) -> None:
    """A row that is written again takes no other value of the sequence."""
    for _ in range(5):
        ours.store_result("a", 1, "PROGRESS")
    ours.store_result("b", 1, "SUCCESS")

    assert row_of(dsn, "b")["id"] == row_of(dsn, "a")["id"] + 1


def test_nobodys_task(ours: Any, theirs: Any) -> None:
    """A task that nothing is stored of is PENDING, and does not exist."""
    meta = theirs.get_task_meta("task")
    assert ours.get_task_meta("task") == {"children": None} | meta
    assert not ours.task_result_exists("task")
    ours.store_result("task", 1, "SUCCESS")
    assert ours.task_result_exists("task")
    assert ours.is_cached("task") is False
    assert ours.get_result("task") == 1
    ours.forget("task")
    assert ours.get_state("task") == "PENDING"


@pytest.mark.parametrize("settings", [{}, PICKLE], ids=["json", "pickle"])
def test_groups(
    make_backend: Callable[..., Any], dsn: str, settings: dict[str, Any]
) -> None:
    """Groups that one backend saves are restored by both, and deleted by either."""
    backends = [make_backend(kind, dsn, **settings) for kind in ("aioabort", "db")]
    for saver in backends:
        for deleter in backends:
            group = saver.app.GroupResult(str(uuid4()), [saver.app.AsyncResult("a")])
            group.save()
            group.save() if saver is backends[0] else None
            for reader in backends:
                restored = reader.app.GroupResult.restore(group.id)
                assert restored.as_tuple() == group.as_tuple()
                reader._cache.clear()
            deleter.delete_group(group.id)
            for reader in backends:
                assert reader.restore_group(group.id) is None


def test_names_of_tables(make_backend: Callable[..., Any], empty_dsn: str) -> None:
    """Tables and schemas are named by Celery's settings; both backends find them."""
    query_dicts(empty_dsn, "CREATE SCHEMA s; CREATE SCHEMA g")
    settings = {
        "database_table_names": {"task": 'my "tasks"', "group": "my groups"},
        "database_table_schemas": {"task": "s", "group": "g"},
    }
    ours = make_backend("aioabort", empty_dsn, **settings)
    ours.store_result("task", 1, "SUCCESS")
    ours.app.GroupResult("group", [ours.app.AsyncResult("task")]).save()

    assert query_dicts(empty_dsn, 'SELECT status FROM s."my ""tasks"""') == [
        {"status": "SUCCESS"}
    ]
    assert query_dicts(empty_dsn, 'SELECT taskset_id FROM g."my groups"') == [
        {"taskset_id": "group"}
    ]


CATALOGUE = {
    "columns": """
        SELECT table_name, column_name, data_type, character_maximum_length,
               is_nullable, column_default
        FROM information_schema.columns
        WHERE table_name LIKE 'celery%%' ORDER BY table_name, ordinal_position
    """,
    "indexes": "SELECT indexdef FROM pg_indexes WHERE tablename LIKE 'celery%%' ORDER BY 1",
    "sequences": """
        SELECT sequencename, data_type::text, start_value, increment_by
        FROM pg_sequences WHERE sequencename LIKE 'task%%' ORDER BY 1
    """,
}


def test_tables_are_created_as_celerys(
    make_backend: Callable[..., Any], empty_dsn: str, dsn: str
) -> None:
    """An empty database gets the tables that Celery would have created."""
    make_backend("aioabort", empty_dsn).store_result("task", 1, "SUCCESS")

    assert_like_celerys(empty_dsn, dsn)
    theirs = make_backend("db", empty_dsn, **EXTENDED)
    theirs.store_result("theirs", 1, "SUCCESS", request=Context(REQUEST))
    theirs.app.GroupResult("group", [theirs.app.AsyncResult("theirs")]).save()
    assert theirs.get_result("task") == theirs.get_result("theirs") == 1
    assert theirs.app.GroupResult.restore("group").results == ["theirs"]


def assert_like_celerys(created: str, celerys: str) -> None:
    """All is as the installed Celery has it; what a later one adds does that no harm."""
    for statement in CATALOGUE.values():
        ours, theirs = query_dicts(created, statement), query_dicts(celerys, statement)
        assert [row for row in ours if row in theirs] == theirs
        for row in ours:
            is_harmless = row.get("is_nullable") == "YES" or (
                "CREATE INDEX" in row.get("indexdef", "")
            )
            assert row in theirs or is_harmless


OLD_TABLES = """
    ALTER TABLE celery_taskmeta
        DROP IF EXISTS children, DROP IF EXISTS stamps, DROP queue;
    DROP INDEX IF EXISTS ix_celery_taskmeta_date_done
"""


@pytest.mark.parametrize("by", ["first use", "init-db", "init-db --sql"])
def test_tables_of_an_older_celery_get_their_columns(
    make_backend: Callable[..., Any], dsn: str, by: str
) -> None:
    """Columns that an older Celery did not have are added.

    With many rows, to build the index takes longer than a process can wait for: only
    the printed statements have it.
    """
    query_dicts(dsn, OLD_TABLES)
    is_first = by == "first use"
    settings = EXTENDED | {"aioabort_create_tables": is_first}
    ours = make_backend("aioabort", dsn, **settings)
    if by == "init-db":
        init_db(ours.app)
        init_db(ours.app)
    elif not is_first:
        query_dicts(dsn, init_db(ours.app, "--sql"))
    ours.store_result("task", 1, "SUCCESS", request=Context(REQUEST | STAMPS))

    assert ours.get_task_meta("task")["queue"] == "queue"
    assert ours.get_task_meta("task")["tenant"] == ["blue"]
    index = "SELECT to_regclass('ix_celery_taskmeta_date_done') IS NOT NULL AS is_there"
    assert query_dicts(dsn, index) == [{"is_there": by == "init-db --sql"}]


def test_tables_that_may_not_be_changed(
    make_backend: Callable[..., Any], dsn: str
) -> None:
    """What has no column is not stored, and all else is."""
    query_dicts(dsn, OLD_TABLES)
    ours = make_backend("aioabort", dsn, **EXTENDED, aioabort_create_tables=False)
    ours.store_result("task", 1, "SUCCESS", request=Context(REQUEST | STAMPS))

    meta = ours.get_task_meta("task")
    assert (meta["result"], meta["name"], meta["queue"]) == (1, "tests.add", None)


def test_cleanup(make_backend: Callable[..., Any], dsn: str) -> None:
    """What is older than result_expires is deleted, however much, and the rest is not."""
    ours = make_backend("aioabort", dsn, result_expires=60)
    query_dicts(
        dsn,
        """
        INSERT INTO celery_taskmeta (id, task_id, status, date_done)
        SELECT n, n, 'SUCCESS', localtimestamp - interval '61 seconds'
        FROM generate_series(1001, 3500) AS n
        """,
    )
    query_dicts(
        dsn,
        """
        INSERT INTO celery_tasksetmeta (id, taskset_id, date_done)
        VALUES (7, 'old', localtimestamp - interval '61 seconds')
        """,
    )
    ours.store_result("new", 1, "SUCCESS")
    ours.app.GroupResult("new", []).save()
    ours.cleanup()

    assert query_dicts(dsn, "SELECT task_id FROM celery_taskmeta") == [
        {"task_id": "new"}
    ]
    assert query_dicts(dsn, "SELECT taskset_id FROM celery_tasksetmeta") == [
        {"taskset_id": "new"}
    ]


def test_cleanup_without_an_expiry(make_backend: Callable[..., Any], dsn: str) -> None:
    """Without result_expires nothing is deleted."""
    ours = make_backend("aioabort", dsn, result_expires=None)
    ours.store_result("old", 1, "SUCCESS")
    query_dicts(dsn, "UPDATE celery_taskmeta SET date_done = '2000-01-01'")
    ours.cleanup()

    assert ours.task_result_exists("old")


def test_pickled_backend(ours: Any) -> None:
    """A pickled backend finds the same results."""
    ours.store_result("task", 1, "SUCCESS")
    ours.app.set_current()
    copy = pickle.loads(pickle.dumps(ours))

    assert type(copy) is PostgresBackend
    assert copy.get_result("task") == 1
    assert copy.expires == ours.expires


def test_backend_in_a_fork(ours: Any) -> None:
    """A child has a connection of its own, and the parent's goes on working."""
    ours.store_result("parent", 1, "SUCCESS")
    child = os.fork()
    if not child:
        try:
            ours.store_result("child", ours.get_result("parent") + 1, "SUCCESS")
        finally:
            os._exit(0)
    os.waitpid(child, 0)

    assert ours.get_result("child") == 2
    ours.store_result("after", 1, "SUCCESS")


def test_no_new_connection_a_call(ours: Any, dsn: str) -> None:
    """However many calls from however many threads: one connection."""

    async def store_many() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(
                    asyncio.to_thread(ours.store_result, str(number), number, "SUCCESS")
                )

    asyncio.run(store_many())
    assert [ours.get_result(str(number)) for number in range(50)] == [*range(50)]
    [count] = query_dicts(
        dsn,
        "SELECT count(*), count(DISTINCT pid) AS pids, min(backend_start) AS start "
        "FROM pg_stat_activity WHERE application_name = 'aioabort' "
        "AND datname = current_database()",
    )
    assert count["count"] == 1
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(lambda: ours.app.backend).result() is ours


def test_password_is_not_shown(make_app: MakeApp) -> None:
    """As Celery has it."""
    app = make_app("postgresql://user:secret@host/database")
    app.conf.result_backend = "aioabort+postgresql://user:secret@host/database"

    assert "secret" not in app.backend.as_uri()
    assert "secret" in app.backend.as_uri(include_password=True)


def test_legacy_pickle(
    ours: Any, theirs: Any, dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that Celery before 5.7 wrote is read with any serializer.

    There is a warning where Celery gives one: before 5.7, such a row is as it should be.
    """
    ours.store_result("task", 1, "SUCCESS")
    query_dicts(
        dsn, "UPDATE celery_taskmeta SET result = %s", pickle.dumps({"a": {1, 2}})
    )
    warnings = []
    for backend in (ours, theirs):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert backend.get_result("task") == {"a": {1, 2}}
        warnings.append(len(caplog.records))
    assert warnings[0] == warnings[1]


@pytest.mark.parametrize("payload", [b"\xff\xfe", b"{", b"\x80\x04broken"])
def test_undecodable_row(ours: Any, dsn: str, payload: bytes) -> None:
    """The task whose result cannot be read has an error that names it; others have none."""
    for task_id in ("bad", "good"):
        ours.store_result(task_id, 1, "SUCCESS")
    query_dicts(
        dsn, "UPDATE celery_taskmeta SET result = %s WHERE task_id = 'bad'", payload
    )

    with pytest.raises((DecodeError, pickle.UnpicklingError)) as caught:
        ours.get_result("bad")
    assert "'bad'" in caught.value.__notes__[0]
    assert ours.get_result("good") == 1
    assert ours.get_state("good") == "SUCCESS"


def test_content_that_is_not_accepted(
    make_backend: Callable[..., Any], dsn: str
) -> None:
    """result_accept_content holds as far as it does for Celery's own backend."""
    make_backend("aioabort", dsn, **PICKLE).store_result("task", {1}, "SUCCESS")
    query_dicts(dsn, "UPDATE celery_taskmeta SET result = %s", b"cos\nsystem\n.")
    strict = {"result_serializer": "pickle", "result_accept_content": ["json"]}
    ours, theirs = (
        value_or_error(make_backend(kind, dsn, **strict)) for kind in ("aioabort", "db")
    )
    assert ours == theirs
    # Before 5.7, Celery unpickles what it finds.
    assert ours in {ContentDisallowed, os.system}


def value_or_error(backend: Any) -> Any:
    """Return the result of the task, or the class of the error."""
    try:
        return backend.get_result("task")
    except ContentDisallowed as error:
        return type(error)


def test_result_over_a_gigabyte(make_backend: Callable[..., Any], dsn: str) -> None:
    """It is refused before it is sent, as one that cannot be encoded; the rest goes on."""
    ours = make_backend("aioabort", dsn, **PICKLE)
    with pytest.raises(EncodeError, match="task 'huge' has 1,07"):
        ours.store_result("huge", bytes(2**30), "SUCCESS")
    assert ours.get_state("huge") == states.PENDING
    ours.store_result("small", 1, "SUCCESS")


def test_traceback_that_is_no_text_for_postgresql(ours: Any) -> None:
    """A NUL or half a character in a traceback does not lose the failure."""
    ours.store_result("task", ValueError("no"), "FAILURE", traceback="a\0b\ud800")
    assert ours.get_traceback("task") == "a\\x00b\\ud800"


async def test_lost_connection_in_the_middle_of_a_store(
    network: Network, dsn: str, make_backend: Callable[..., Any]
) -> None:
    """The server has the statement, and the answer is lost: the store is repeated."""
    ours = make_backend("aioabort", network.dsn)
    await asyncio.to_thread(ours.store_result, "before", 1, "SUCCESS")
    # The row is locked, so the statement is with the server when the network is cut.
    with psycopg.connect(dsn) as blocker:
        blocker.execute("LOCK celery_taskmeta IN EXCLUSIVE MODE")
        storing = asyncio.create_task(
            asyncio.to_thread(ours.store_result, "task", 1, "SUCCESS")
        )
        await until(
            lambda: query_dicts(dsn, "SELECT 1 FROM pg_locks WHERE NOT granted")
        )
        await network.cut()
        blocker.rollback()
    await network.mend()
    await storing

    assert (
        len(query_dicts(dsn, "SELECT 1 FROM celery_taskmeta WHERE task_id = 'task'"))
        == 1
    )
    assert row_of(dsn, "task")["status"] == "SUCCESS"


CALLS: dict[str, Callable[[Any], object]] = {
    "store": lambda ours: ours.store_result("task", 1, "SUCCESS"),
    "read": lambda ours: ours.get_task_meta("task"),
    "exists": lambda ours: ours.task_result_exists("task"),
    "forget": lambda ours: ours.forget("task"),
    "save a group": lambda ours: ours.app.GroupResult("group", []).save(),
    "restore a group": lambda ours: ours.restore_group("group"),
    "delete a group": lambda ours: ours.delete_group("group"),
    "cleanup": lambda ours: ours.cleanup(),
}


@pytest.mark.parametrize("call", CALLS)
async def test_connection_that_goes_silent(
    network: Network,
    make_backend: Callable[..., Any],
    call: str,
) -> None:
    """A statement without an answer in time is repeated on another connection."""
    timing = Timing(statement_timeout=0.3)
    ours = make_backend("aioabort", network.dsn, aioabort_timing=timing)
    await asyncio.to_thread(ours.store_result, "before", 1, "SUCCESS")
    network.freeze()
    await asyncio.to_thread(CALLS[call], ours)

    assert await asyncio.to_thread(ours.get_result, "before") == 1
    assert network.connections >= 2


async def test_large_result_over_a_slow_network(
    network: Network, dsn: str, make_backend: Callable[..., Any]
) -> None:
    """A read has time for what it fetches, and other statements do not wait for it."""
    large = "0123456789" * 300_000
    make_backend("aioabort", dsn).store_result("task", large, "SUCCESS")
    timing = Timing(statement_timeout=0.3)
    ours = make_backend("aioabort", network.dsn, aioabort_timing=timing)
    await asyncio.to_thread(ours.store_result, "before", 1, "SUCCESS")
    network.delay(0.03)

    assert await asyncio.to_thread(ours.get_result, "task") == large
    assert network.connections == 2


async def test_server_that_stays_away(
    network: Network, make_backend: Callable[..., Any]
) -> None:
    """After Celery's own number of tries, its own error says that the result is lost."""
    timing = Timing(ask_timeout=0.1)
    ours = make_backend(
        "aioabort", network.dsn, result_backend_max_retries=1, aioabort_timing=timing
    )
    await asyncio.to_thread(ours.store_result, "before", 1, "SUCCESS")
    await network.cut()

    with pytest.raises(BackendStoreError) as caught:
        await asyncio.to_thread(ours.store_result, "task", 1, "SUCCESS")
    assert caught.value.task_id == "task"


def test_settings_for_tries(make_backend: Callable[..., Any], dsn: str) -> None:
    """They are the database backend's: three more tries, unless the settings say so."""
    given = {
        "result_backend_always_retry": False,
        "result_backend_max_retries": 7,
    }
    for settings, wanted in (({}, (True, 3)), (given, (False, 7))):
        ours = make_backend("aioabort", dsn, **settings)
        theirs: DatabaseBackend = make_backend("db", dsn, **settings)
        assert (ours.always_retry, ours.max_retries) == wanted
        # Before 5.7, Celery's own tries three times and ignores the settings.
        if RETRIES_EVERY_CALL:
            assert (theirs.always_retry, theirs.max_retries) == wanted


async def test_plain_task_is_awaited(ours: Any) -> None:
    """The backend notifies the waiters of any task when its final state is stored."""
    # So slow a poll that nothing but a notification ends the wait.
    ours.app.conf.aioabort_poll_interval = 1000
    async with AbortClient(ours.app) as client:
        await listening(client)
        waiting = asyncio.create_task(client.wait("task", 10))
        await asyncio.sleep(0)
        await asyncio.to_thread(ours.store_result, "task", 5, "SUCCESS")
        assert await waiting == 5


@dataclass
class Traced:
    """What a task's trace sent to the server, and how it ended."""

    before_body: int
    in_all: int
    result: Any


async def trace(
    app: Celery, network: Network, task_id: str, body: Callable[[], Any] = str
) -> Traced:
    """Run the task as a pool's process does, and count what is sent to the server."""
    counts: list[int] = []

    @app.task(base=AbortableTask, shared=False, name=task_id)
    def count() -> Any:
        counts.append(network.requests)
        return body()

    count.bind(app)
    run = build_tracer(count.name, app.tasks[count.name], app=app)
    request = {"id": task_id, "hostname": "worker@host", "delivery_info": {}}
    first = network.requests
    ended = await asyncio.to_thread(run, task_id, (), {}, request)
    before_body = counts[0] - first if counts else 0
    return Traced(before_body, network.requests - first, ended.retval)


async def test_one_statement_to_start_and_one_to_end(
    network: Network, make_backend: Callable[..., Any]
) -> None:
    """Storing STARTED is the start check; storing the result is all that follows."""
    settings = {
        "task_track_started": True,
        "aioabort_notify": False,
        "aioabort_poll_interval": 1000,
    }
    app = make_backend("aioabort", network.dsn, **settings).app
    # Statements are prepared at first use.
    await trace(app, network, "first")
    traced = await trace(app, network, "second")

    assert (traced.before_body, traced.in_all) == (1, 2)
    assert traced.result == ""


async def test_task_whose_result_is_too_large(
    network: Network, make_backend: Callable[..., Any]
) -> None:
    """It fails, and its error says why."""
    backend = make_backend("aioabort", network.dsn, **PICKLE)
    await trace(backend.app, network, "huge", lambda: bytes(2**30))
    meta = await asyncio.to_thread(backend.get_task_meta, "huge")

    assert meta["status"] == "FAILURE"
    assert isinstance(meta["result"], ResultTooLarge)
    assert "task 'huge' has 1,073,7" in str(meta["result"])


@pytest.mark.parametrize("by", ["request", "Celery's own"])
async def test_aborted_before_the_start(
    dsn: str, network: Network, make_backend: Callable[..., Any], by: str
) -> None:
    """The statement that would store STARTED finds the request: the body never runs."""
    app = make_backend("aioabort", network.dsn, task_track_started=True).app
    if by == "request":
        async with AbortClient(app) as client:
            await client.abort("task", reason="why")
        # STARTED of a worker with Celery's own backend has been stored since.
        query_dicts(dsn, "UPDATE celery_taskmeta SET status = 'STARTED'")
    else:
        celerys = make_backend("db", dsn)
        await asyncio.to_thread(celerys.store_result, "task", None, "ABORTED")
    traced = await trace(app, network, "task")

    assert traced.before_body == 0
    assert row_of(dsn, "task")["status"] == "REVOKED"


@pytest.fixture
def main_process() -> Iterator[None]:
    """This is the main process of a prefork pool."""
    child = Process(target=time.sleep, args=(60,), name="ForkPoolWorker-1", daemon=True)
    child.start()
    yield
    child.terminate()
    child.join()


@pytest.mark.usefixtures("main_process")
def test_main_process_keeps_nothing(ours: Any, dsn: str) -> None:
    """A process that forks stores and reads, and has neither thread nor connection then."""
    threads = threading.active_count()
    ours.store_result("task", 1, "REVOKED")

    assert row_of(dsn, "task")["status"] == "REVOKED"
    assert threading.active_count() == threads
    count = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
    assert len(query_dicts(dsn, count)) == 1


def init_db(app: Celery, *arguments: str) -> str:
    context = SimpleNamespace(app=app)
    result = CliRunner().invoke(main, ["init-db", *arguments], obj=context)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("is_printed", [True, False])
def test_tables_that_an_administrator_creates(
    make_backend: Callable[..., Any], empty_dsn: str, dsn: str, is_printed: bool
) -> None:
    """``init-db`` creates all tables, or prints how, for a role that may not."""
    ours = make_backend("aioabort", empty_dsn, aioabort_create_tables=False)
    if is_printed:
        query_dicts(empty_dsn, init_db(ours.app, "--sql"))
    else:
        init_db(ours.app)
    ours.store_result("task", 1, "SUCCESS")

    assert_like_celerys(empty_dsn, dsn)
