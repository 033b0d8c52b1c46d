"""Celery's private names, and what differs between its releases.

Everything private that we call is called here. What we override, or call by ``super()``,
stays with the class that does it: ``PostgresBackend`` and ``AbortableRequest``.
tests/unit/test_celery_compat.py has a test for each name, which fails when a release of
Celery, kombu or billiard changes it.
"""

import pickle
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, cast

import celery
from billiard import process
from celery import Celery, _state, current_app
from celery import Task as CeleryTask
from celery.backends.base import BaseBackend, DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.result import AsyncResult as CeleryAsyncResult
from celery.result import EagerResult as CeleryEagerResult

from aioabort.models import RESULT_STATES

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

#: Before 5.7, Celery's database backend pickles results whatever the serializer.
PICKLES_RESULTS: Final = celery.VERSION < (5, 7)

#: Before 5.7, Celery's backends try again only to store a result and to read one.
RETRIES_EVERY_CALL: Final = hasattr(BaseBackend, "_ensure_retryable")

# To type checkers, Task and the results are generic. Celery before 5.6 has classes that
# cannot be subscripted at run time.
if TYPE_CHECKING:
    GenericTask = CeleryTask
    GenericAsyncResult = CeleryAsyncResult
    GenericEagerResult = CeleryEagerResult
else:

    class GenericTask(CeleryTask, Generic[P, R_co]):
        """Celery's Task."""

        abstract = True

    class GenericAsyncResult(CeleryAsyncResult, Generic[R_co]):
        """Celery's AsyncResult."""

    class GenericEagerResult(CeleryEagerResult, Generic[R_co]):
        """Celery's EagerResult."""


#: Where a task keeps a result backend that differs from its app's.
OWN_BACKEND: Final = "_backend"


def own_backend(task: "CeleryTask[..., Any]") -> Any:
    """Return the backend that was set for *task* alone; None if its app's is used.

    Unlike ``task.backend``, this does not make the app's backend.
    """
    return getattr(task, OWN_BACKEND)


def identify_threads_by(ident: Callable[[], Any], task: "CeleryTask[..., Any]") -> None:
    """Let ``task.request`` and ``current_task`` be looked up by *ident*.

    Celery keeps one stack a thread, and asks for the ident of the thread at each look-up.
    """
    stacks: list[Any] = [vars(_state)["_task_stack"], task.request_stack]
    for stack in stacks:
        stack.__ident_func__ = ident


@contextmanager
def current_task_set_to(task: "CeleryTask[..., Any]") -> Generator[None]:
    """Make *task* Celery's ``current_task`` of this thread until the block ends."""
    stack: Any = vars(_state)["_task_stack"]
    stack.push(task)
    try:
        yield
    finally:
        stack.pop()


def resolve_current_app() -> Celery:
    """Return the app that ``celery.current_app`` stands for in this thread."""
    proxy: Any = current_app
    return cast("Celery", proxy._get_current_object())


def call_errbacks(backend: Any, context: Any, error: Exception) -> None:
    """Call the errbacks of *context*, or send those that take only the task's id."""
    backend._call_task_errbacks(context, error, None)


def result_meta(backend: Any, **facts: Any) -> dict[str, Any]:
    """Return what *backend* stores besides the result, as it would itself."""
    meta: dict[str, Any] = backend._get_result_meta(**facts)
    return meta


def decode_database_result(backend: Any, payload: bytes) -> Any:
    """Return the value in a ``result`` column that Celery's database backend wrote."""
    if hasattr(backend, "_decode_stored_result"):
        return backend._decode_stored_result(payload)
    # Before 5.7, Celery unpickles it just so.
    return pickle.loads(payload)  # noqa: S301


def stored_state(backend: Any, task_id: str) -> str | None:
    """Return the state that *backend* has stored; None if this process cannot read it.

    Celery's cache is not asked: it keeps final states that were replaced since.
    """
    if isinstance(backend, DisabledBackend | RPCBackend):
        return None
    state: str = backend.get_task_meta(task_id, cache=False)["status"]
    return state


def is_database_backend(backend: Any) -> bool:
    """Whether *backend* is Celery's for databases, without importing SQLAlchemy."""
    return hasattr(backend, "ResultSession") and hasattr(backend, "task_cls")


def store_in_database_unless_result(
    backend: Any, task_id: str, error: BaseException, state: str, request: Any
) -> bool:
    """Store *error*, unless the task has a result; return whether it was stored.

    That is what Celery's database backend does, but its row is locked, and FAILURE stays
    as well as SUCCESS. Before 5.7, Celery would replace both.
    """
    with backend.ResultSession() as session:
        row = _find_row(backend, session, task_id)
        if row is None:
            row = backend.task_cls(task_id)
            session.add(row)
            # If another run has added the row meanwhile, this raises an IntegrityError.
            session.flush()
        elif row.status in RESULT_STATES:
            return False
        encoded = backend.encode_result(error, state)
        backend._update_result(row, encoded, state, request=request)
        session.commit()
    return True


def _find_row(backend: Any, session: Any, task_id: str) -> Any:
    """Return the row of the task, locked; None if there is none."""
    if hasattr(backend, "_query_task"):
        # Since 5.7: the table may lack columns that Celery has added.
        return backend._query_task(session, task_id, for_update=True) or None
    query = session.query(backend.task_cls).filter_by(task_id=task_id)
    return query.with_for_update().one_or_none()


def task_id_of_key(backend: Any) -> Callable[[Any], str]:
    """Return the function that removes the prefix from a key of a key-value backend."""
    strip: Callable[[Any], str] = backend._strip_prefix
    return strip


#: The module of Celery's Redis backends, which imports redis-py, and what makes their
#: clients.
_REDIS_MODULE: Final = "celery.backends.redis"
_REDIS_CLIENT: Final = ("client", "_create_client", "_get_client", "_get_pool")


def uses_celerys_redis_client(backend_class: type) -> bool:
    """Whether the class is Celery's Redis backend, or leaves its client as it is."""
    makers = [
        next((cls for cls in backend_class.__mro__ if name in vars(cls)), object)
        for name in _REDIS_CLIENT
    ]
    return all(cls.__module__ == _REDIS_MODULE for cls in makers)


def is_main_process() -> bool:
    """Whether this is no child of a pool of processes."""
    return process.current_process().name == "MainProcess"


def has_pool_children() -> bool:
    """Whether this process has forked the children of a prefork pool."""
    # billiard's own clean-up would reap children that the pool has to reap.
    children: Any = process.active_children(_cleanup=lambda: None)
    return any("PoolWorker" in child.name for child in children)


def process_pool_of(consumer: Any) -> Any:
    """Return billiard's pool of a prefork worker's consumer; None for other pools."""
    pool = getattr(consumer.pool, "_pool", None)
    return pool if hasattr(pool, "on_process_down") else None
