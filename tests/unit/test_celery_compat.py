"""The private names of Celery, kombu and billiard that the package stands on.

A test fails here when a release renames one of them, changes its parameters or gives it
another meaning.
"""

import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery, states
from celery.app.task import Context
from celery.backends.base import BaseBackend, DisabledBackend
from celery.backends.cache import CacheBackend
from celery.backends.database import DatabaseBackend
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.result import GroupResult
from celery.worker.request import Request
from kombu.utils.encoding import ensure_bytes

from aioabort import celery_compat
from aioabort.backend.backend import PostgresBackend
from aioabort.worker.workflow import AbortHonoured

REQUEST = "celery.worker.request:Request"
BACKEND = "celery.backends.base:BaseBackend"
KEY_VALUE_BACKEND = "celery.backends.base:KeyValueStoreBackend"

#: What a release does not have that is older than the name.
ABSENT = None

#: The parameters of each name, in the releases that we support.
PARAMETERS = {
    # AbortableRequest overrides these and calls them by super().
    f"{REQUEST}.on_accepted": {"pid, time_accepted"},
    f"{REQUEST}.on_failure": {"exc_info, send_failed_event=True, return_ok=False"},
    f"{REQUEST}.on_retry": {"exc_info"},
    f"{REQUEST}.on_timeout": {"soft, timeout"},
    f"{REQUEST}.reject": {"requeue=False"},
    f"{REQUEST}._announce_revoked": {"reason, terminated, signum, expired"},
    f"{REQUEST}._announce_cancelled": {"", "emit_retry=True"},
    f"{REQUEST}._retry_worker_lost": {"exc, exc_info", ABSENT},
    # AbortableRequest calls these.
    f"{REQUEST}.acknowledge": {""},
    f"{REQUEST}.send_event": {"type, **fields"},
    # celery_compat calls this.
    f"{BACKEND}._call_task_errbacks": {"request, exc, traceback"},
    # PostgresBackend overrides these.
    f"{BACKEND}._forget": {"task_id"},
    f"{BACKEND}.__reduce__": {"args=(), kwargs=None"},
    f"{KEY_VALUE_BACKEND}._store_result": {
        "task_id, result, state, traceback=None, request=None, **kwargs"
    },
    f"{KEY_VALUE_BACKEND}._get_task_meta_for": {"task_id"},
    f"{KEY_VALUE_BACKEND}._save_group": {"group_id, result"},
    f"{KEY_VALUE_BACKEND}._restore_group": {"group_id"},
    f"{KEY_VALUE_BACKEND}._delete_group": {"group_id"},
    "celery.backends.database:DatabaseBackend._decode_stored_result": {
        "payload",
        ABSENT,
    },
    # celery_compat calls these.
    f"{BACKEND}._get_result_meta": {
        "result, state, traceback, request, format_date=True, encode=False"
    },
    f"{BACKEND}._ensure_retryable": {
        "func, *args, fallback_exc=None, fallback_msg=None, max_retries=None, **kwargs",
        ABSENT,
    },
    f"{KEY_VALUE_BACKEND}._strip_prefix": {"key"},
    "celery.backends.database:DatabaseBackend._query_task": {
        "session, task_id, for_update=False",
        ABSENT,
    },
    "celery.backends.database:DatabaseBackend._update_result": {
        "task, result, state, traceback=None, request=None"
    },
    # The demo's broker overrides this.
    "kombu.transport.filesystem:Channel._put": {"queue, payload, **kwargs"},
}

#: What PostgresBackend overrides, in the order of the test's calls.
OVERRIDDEN = dict.fromkeys(
    (
        "_store_result",
        "_get_task_meta_for",
        "_forget",
        "_save_group",
        "_restore_group",
        "_delete_group",
    )
)

#: In a process of its own: pytest's has threads, which a child would not inherit.
PREFORK = """
import os, signal, threading, traceback
from types import SimpleNamespace
from celery import Celery
from celery.concurrency.prefork import TaskPool
from aioabort.celery_compat import has_pool_children, is_main_process, process_pool_of

down, processes = threading.Event(), []

def on_process_down(process):
    processes.append((process.pid, process.exitcode))
    down.set()

def check():
    assert is_main_process()
    assert not has_pool_children()
    app = Celery("app", broker="memory://")
    task_pool = TaskPool(1, app=app, initargs=(app, "worker@host"), threads=True)
    consumer = SimpleNamespace(pool=task_pool)
    assert process_pool_of(consumer) is None
    task_pool.start()
    pool = process_pool_of(consumer)
    pool.on_process_down = on_process_down
    assert has_pool_children()
    assert not pool.apply(is_main_process)
    child = pool.apply(os.getpid)
    os.kill(child, signal.SIGKILL)
    assert down.wait(20)
    assert processes == [(child, -signal.SIGKILL)], processes

try:
    check()
    print("passed", flush=True)
except BaseException:
    traceback.print_exc()
# The pool cannot be stopped, as the child held a lock that the others need; and it forks
# another child at any moment.
os.killpg(0, signal.SIGKILL)
"""


def resolve(path: str) -> Any:
    module, _, names = path.partition(":")
    found: Any = import_module(module)
    for name in names.split("."):
        found = inspect.getattr_static(found, name, ABSENT)
    return found


def parameters_of(path: str) -> str | None:
    function = resolve(path)
    if function is ABSENT:
        return ABSENT
    signature = inspect.signature(function)
    _self, *others = signature.parameters.values()
    return ", ".join(str(parameter) for parameter in others)


@pytest.fixture
def app() -> Celery:
    return Celery("app", broker="memory://", backend="cache+memory://")


@pytest.mark.parametrize("path", PARAMETERS)
def test_parameters(path: str) -> None:
    """The name exists and takes what we pass on, or what Celery passes to us."""
    assert parameters_of(path) in PARAMETERS[path]


def test_request_of_a_worker(app: Celery) -> None:
    """It knows its task, the child that runs it, and the Context that the task sees."""

    @app.task(shared=False, name="task")
    def task() -> None: ...

    with app.connection_for_write() as connection:
        task.apply_async(task_id="id", connection=connection, queue="requests")
        queue = app.amqp.queues["requests"]
        message = queue(connection.default_channel).get(accept=["json"])
        request: Any = Request(message, app=app, task=task, hostname="worker@host")

    assert (request.id, request.task, request.worker_pid) == ("id", task, None)
    assert isinstance(request._context, Context)
    assert request._context.id == "id"


def test_error_of_a_child() -> None:
    """It is wrapped up with its traceback, also after it was pickled."""
    try:
        raise AbortHonoured("why")  # noqa: TRY301
    except AbortHonoured:
        info = ExceptionInfo()
    for each in (info, pickle.loads(pickle.dumps(info))):
        error = getattr(each.exception, "exc", each.exception)
        assert isinstance(error, AbortHonoured)
        assert error.args == ("why",)


def test_state_of_a_worker() -> None:
    """Celery's worker keeps its active and its revoked tasks, and whether to terminate."""
    state = import_module("celery.worker.state")
    assert not list(state.active_requests)
    state.revoked.add("a")
    assert "a" in state.revoked
    state.revoked.discard("a")
    assert "a" not in state.revoked
    assert state.should_terminate is None
    assert callable(state.task_ready)


def test_what_celery_calls_of_a_backend(app: Celery) -> None:
    """Each public method of a backend calls the private one that we override."""
    called: list[str] = []

    def record(name: str) -> Callable[..., dict[str, Any]]:
        def call(*_args: object, **_kwargs: object) -> dict[str, Any]:
            called.append(name)
            return {"status": states.PENDING, "result": None}

        return call

    backend: Any = BaseBackend(app=app)
    for name in OVERRIDDEN:
        setattr(backend, name, record(name))
    backend.store_result("id", 1, states.SUCCESS)
    backend.get_task_meta("id")
    backend.forget("id")
    backend.save_group("id", GroupResult("id", []))
    backend.restore_group("id")
    backend.delete_group("id")

    assert called == [*OVERRIDDEN]
    assert vars(PostgresBackend).keys() >= OVERRIDDEN.keys()


def test_only_new_releases_retry_every_call(app: Celery) -> None:
    """``RETRIES_EVERY_CALL`` tells whether Celery itself tries again to forget."""
    tries: list[str] = []

    class Backend(BaseBackend):
        def exception_safe_to_retry(self, _error: BaseException) -> bool:
            return True

        def _forget(self, task_id: str) -> None:
            tries.append(task_id)
            raise ConnectionError

    backend: Any = Backend(app=app)
    backend.always_retry, backend.max_retries = True, 1
    with pytest.raises(Exception):  # noqa: B017, PT011 - releases raise different ones
        backend.forget("id")
    assert len(tries) == (2 if celery_compat.RETRIES_EVERY_CALL else 1)


def test_meta_of_a_result(app: Celery) -> None:
    """Celery's own facts about a result, by the names of the columns."""
    app.conf.result_extended = True
    context = Context(
        id="id", task="name", args=[1], kwargs={"a": 2}, hostname="w", retries=3
    )
    meta = celery_compat.result_meta(
        app.backend,
        result=b"encoded",
        state=states.SUCCESS,
        traceback="trace",
        request=context,
        format_date=False,
        encode=True,
    )
    assert (meta["status"], meta["result"]) == (states.SUCCESS, b"encoded")
    assert (meta["traceback"], meta["children"]) == ("trace", [])
    assert meta["date_done"].year >= 2025
    assert (meta["name"], meta["worker"], meta["retries"]) == ("name", "w", 3)
    assert ensure_bytes(meta["args"]) == b"[1]"


@pytest.mark.parametrize("value", [{"a": [1, None]}, "text"])
def test_column_of_the_database_backend(value: Any, tmp_path: Path) -> None:
    """A ``result`` column of Celery's own is a pickle before 5.7, and then JSON."""
    app = Celery("app", broker="memory://", backend=f"db+sqlite:///{tmp_path}/db")
    backend: Any = app.backend
    assert isinstance(backend, DatabaseBackend)
    backend.store_result("id", value, states.SUCCESS)
    with backend.ResultSession() as session:
        [row] = session.query(backend.task_cls).all()
    # SQLAlchemy's old type has unpickled it.
    is_pickled = not isinstance(row.result, bytes)
    payload = pickle.dumps(row.result) if is_pickled else row.result

    assert is_pickled == celery_compat.PICKLES_RESULTS
    assert celery_compat.decode_database_result(backend, payload) == value


def test_key_of_a_key_value_backend(app: Celery) -> None:
    """``mget()`` may answer by key; the id is the key without its prefix."""
    backend: Any = app.backend
    assert isinstance(backend, CacheBackend)
    key = backend.get_key_for_task("id")
    assert key != "id"
    assert celery_compat.task_id_of_key(backend)(key) == "id"


def test_current_app(app: Celery) -> None:
    """It is the app itself: ``celery.current_app`` is a proxy, and no key of a dict."""
    app.set_current()
    assert type(celery_compat.resolve_current_app()) is Celery
    assert celery_compat.resolve_current_app() is app


def test_backend_of_a_task(app: Celery) -> None:
    """A task has no backend of its own until one is set or asked for."""

    @app.task(shared=False, name="task")
    def task() -> None: ...

    actual: Any = app.tasks["task"]
    assert actual._backend is None
    own = CacheBackend(app=app, url="memory://")
    actual.backend = own
    assert actual._backend is own


def test_pool_of_processes() -> None:
    """Main process and child tell themselves apart; a killed child is called back."""
    command = [sys.executable, "-W", "ignore:This process", "-c", PREFORK]
    done = subprocess.run(
        command,
        capture_output=True,
        check=False,
        start_new_session=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "passed\n", done.stderr


def test_the_makers_of_a_redis_client() -> None:
    """A backend class that replaces one of them is read by its own client."""
    assert celery_compat.uses_celerys_redis_client(RedisBackend)
    assert celery_compat.uses_celerys_redis_client(SentinelBackend)
    assert not celery_compat.uses_celerys_redis_client(DisabledBackend)
    for name in ("client", "_create_client", "_get_client", "_get_pool"):
        assert name in vars(RedisBackend)
        own = type("Own", (RedisBackend,), {name: None})
        assert not celery_compat.uses_celerys_redis_client(own)
    assert celery_compat.uses_celerys_redis_client(type("Own", (RedisBackend,), {}))
