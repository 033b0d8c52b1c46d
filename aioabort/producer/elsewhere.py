"""Results that Celery keeps somewhere else: in Redis, MySQL, SQLite, a cache, ...

Celery's backends block, so all of them are read from one thread, as many tasks at once
as the backend can look up. The requests to abort them are in PostgreSQL.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor as Thread
from dataclasses import dataclass, field
from pickle import PickleError
from typing import Any, TypeVar, cast

from celery import states
from celery.backends.base import BaseKeyValueStoreBackend, DisabledBackend
from celery.backends.rpc import RPCBackend
from kombu.exceptions import KombuError

from aioabort.exceptions import ResultsElsewhere, StoreUnavailable
from aioabort.postgres.store import Store
from aioabort.producer.codec import from_meta
from aioabort.records import TaskRow, TaskSnapshot
from aioabort.threads import are_green

T = TypeVar("T")

Meta = dict[str, Any]

#: What a payload is blamed for that cannot be decoded; the rest is the backend's fault.
_UNDECODABLE = (
    AttributeError,
    EOFError,
    ImportError,
    KombuError,
    LookupError,
    PickleError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRow(TaskRow):
    """A task as Celery's backend shows it, with its result decoded.

    ``shown`` makes two rows differ: of an exception, each look makes a new one.
    """

    meta: Meta = field(compare=False)
    shown: str
    error: Exception | None = field(default=None, compare=False)


class Elsewhere:
    """Results in Celery's own backend, and the requests beside them in PostgreSQL."""

    def __init__(self, store: Store, backend: Any, thread: Thread) -> None:
        self._store = store
        self._backend = backend
        self._thread = thread
        self._problem = _problem(backend)

    async def look(
        self, task_ids: Sequence[str], closely: Sequence[str]
    ) -> dict[str, TaskRow]:
        """Return the rows of *task_ids* that have ended, and *closely*'s.

        Without PostgreSQL, those that the backend alone shows to have ended.
        """
        everything = [*task_ids, *closely]
        try:
            requests = await self._store.snapshots(everything)
        except StoreUnavailable:
            requests = {}
        rows = await self._rows(everything, requests)
        watched = set(closely)
        return {
            task_id: row
            for task_id, row in rows.items()
            if row.is_finished or task_id in watched
        }

    async def snapshots(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Return the rows of the tasks; one never heard of has neither state nor request."""
        return await self._rows(task_ids, await self._store.snapshots(task_ids))

    def check_readable(self) -> None:
        """Raise ResultsElsewhere if no result can be read, now or ever."""
        if self._problem is not None:
            raise ResultsElsewhere(self._problem)

    def decode(self, row: TaskRow) -> TaskSnapshot[Any]:
        """Return *row* as a snapshot; raises what its result could not be decoded for."""
        if not isinstance(row, ForeignRow):
            return from_meta(row, {"status": row.state or states.PENDING})
        if row.error is not None:
            raise row.error.with_traceback(None)  # it is raised by all who wait
        return from_meta(row, row.meta)

    async def _rows(
        self, task_ids: Sequence[str], requests: dict[str, TaskRow]
    ) -> dict[str, TaskRow]:
        """Return the rows of the tasks, of which *requests* has been read already.

        In this order: a request is settled after the result was stored, so whoever
        reads that it is settled must not have read the result before.
        """
        if self._problem is not None:
            return {
                task_id: requests.get(task_id) or TaskRow(task_id=task_id)
                for task_id in task_ids
            }
        metas = await run_in(self._thread, lambda: _read(self._backend, task_ids))
        return {
            task_id: _row(task_id, meta, requests.get(task_id))
            for task_id, meta in metas.items()
        }


async def run_in(thread: Thread, act: Callable[[], T]) -> T:
    """Return what *act* returns in *thread*.

    Under gevent that would be a greenlet, and our loop's own executor has real threads.
    """
    executor = None if are_green() else thread
    return await asyncio.get_running_loop().run_in_executor(executor, act)


def _problem(backend: object) -> str | None:
    if isinstance(backend, DisabledBackend):
        return "The app has no result backend: there is nothing to await"
    if isinstance(backend, RPCBackend):
        return (
            "With rpc:// a result is sent to the thread that published the task, and "
            "nobody else can read it: use another result backend to await tasks"
        )
    return None


def _row(task_id: str, meta: Meta | Exception, known: TaskRow | None) -> ForeignRow:
    request = known.request if known is not None else None
    facts: dict[str, Any] = {
        "task_id": task_id,
        "request": request,
        "kill_in": known.kill_in if known is not None else None,
    }
    if isinstance(meta, Exception):
        # It has ended, or it would have no result; how, nobody can tell.
        return ForeignRow(
            **facts, state=states.FAILURE, meta={}, shown=repr(meta), error=meta
        )
    shown = f"{meta.get('result')!r} {meta.get('traceback')} {meta.get('date_done')}"
    return ForeignRow(**facts, state=meta["status"], meta=meta, shown=shown)


def _read(backend: Any, task_ids: Sequence[str]) -> dict[str, Meta | Exception]:
    """Return what *backend* has of the tasks. Raises StoreUnavailable if it has trouble."""
    try:
        payloads = _payloads(backend, task_ids)
        if payloads is None:
            return {
                task_id: _decoded(backend.get_task_meta, task_id)
                for task_id in task_ids
            }
        return {
            task_id: _decoded(backend.decode_result, payload)
            if payload is not None
            else {"status": states.PENDING, "result": None}
            for task_id, payload in payloads.items()
        }
    except Exception as error:
        # Each library has errors of its own for a server that is away.
        problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise StoreUnavailable(
            f"Celery's result backend cannot be read: {problem}"
        ) from error


def _payloads(backend: Any, task_ids: Sequence[str]) -> dict[str, Any] | None:
    """Return the payloads of the tasks, or None if *backend* gives one at a time."""
    if not isinstance(backend, BaseKeyValueStoreBackend):
        return None
    keys = [backend.get_key_for_task(task_id) for task_id in task_ids]
    try:
        values: Any = backend.mget(keys)
    except NotImplementedError:
        return None
    if hasattr(values, "items"):
        strip: Callable[[Any], str] = cast("Any", backend)._strip_prefix
        named = {strip(key): value for key, value in values.items()}
        return {task_id: named.get(task_id) for task_id in task_ids}
    return dict(zip(task_ids, values, strict=True))


def _decoded(decode: Callable[[Any], Meta], payload: Any) -> Meta | Exception:
    try:
        return decode(payload)
    except _UNDECODABLE as error:
        return error
