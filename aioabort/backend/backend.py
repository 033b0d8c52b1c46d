"""The result backend: Celery's interface, Celery's tables, and one statement a call."""

import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

from celery import states
from celery.backends.base import BaseBackend
from celery.exceptions import ImproperlyConfigured
from celery.result import result_from_tuple
from celery.utils.time import maybe_timedelta

from aioabort.backend import encoding
from aioabort.celery_compat import RETRIES_EVERY_CALL, has_pool_children
from aioabort.dsn import parse_dsn
from aioabort.exceptions import ResultTooLarge, StoreUnavailable
from aioabort.models import ABORTED
from aioabort.postgres.result_store import ResultStore
from aioabort.reconnect import Backoff
from aioabort.settings import Settings, read_settings
from aioabort.worker.agent.agent import Agent, agent_with
from aioabort.worker.agent.agent_connection import LARGE
from aioabort.worker.run import Run
from aioabort.worker.token import current

#: As with Celery's database backend, unless the settings say otherwise.
MAX_RETRIES = 3

T = TypeVar("T")


class PostgresBackend(BaseBackend):
    """Results in PostgreSQL, in the tables of Celery's database backend.

    Its statements run on the connection of this process's agent. The backend itself
    holds no resource, so it may be forked, pickled and shared by threads.
    """

    subpolling_interval: float | None = 0.5
    #: The statement that stores STARTED also queries the task's abort request.
    asks_at_start: bool = True

    app: Any
    always_retry: Any
    thread_safe: Any
    max_retries: Any
    base_sleep_between_retries_ms: Any
    max_sleep_between_retries_ms: Any
    expires: Any
    url: Any

    def __init__(self, url: str | None = None, **kwargs: Any) -> None:
        super().__init__(expires_type=maybe_timedelta, url=url, **kwargs)
        conf = self.app.conf
        # Otherwise every thread and greenlet of the app would make a backend of its own.
        self.thread_safe = True
        self.url = url or conf.database_url
        if not self.url:
            raise ImproperlyConfigured(
                "aioabort's result backend needs a URL such as "
                "aioabort+postgresql://user@host/database"
            )
        is_set = conf.value_set_for
        if not is_set("result_backend_always_retry") or self.always_retry is None:
            self.always_retry = True
        if not is_set("result_backend_max_retries") or self.max_retries is None:
            self.max_retries = MAX_RETRIES

    @property
    def extended_result(self) -> bool:
        """Whether the name, arguments, worker, ... of a task are stored, too."""
        return bool(self.app.conf.find_value_for_key("extended", "result"))

    def exception_safe_to_retry(self, exc: BaseException) -> bool:
        """Whether a later try may succeed; storing a result twice stores it once."""
        return isinstance(exc, StoreUnavailable)

    def task_result_exists(self, task_id: str) -> bool:
        """Whether a state of the task is stored."""
        exists = self._with_retries(lambda tables: tables.has_result(str(task_id)))
        return bool(exists)

    def cleanup(self) -> None:
        """Delete the results that have expired, in batches."""
        age = self.expires
        if age:
            seconds = age.total_seconds() if isinstance(age, timedelta) else float(age)
            self._with_retries(lambda tables: tables.delete_expired(seconds))

    def store_revoked(self, task_id: str, error: BaseException, request: Any) -> bool:
        """Store *error* as REVOKED; return False if the task has a result, which stays."""
        encoded = self.encode_result(error, states.REVOKED)
        return self._store_result(task_id, encoded, states.REVOKED, request=request)

    def _store_result(
        self,
        task_id: str,
        result: object,
        state: str,
        traceback: object = None,
        request: Any = None,
        **_: object,
    ) -> bool:
        """Store *state*; return False if the stored state takes precedence."""
        task_id = str(task_id)
        with self._agent() as agent:
            if state == ABORTED:
                agent.call(lambda monitor: monitor.request_abort(task_id))
                return True
            columns = encoding.to_columns(self, result, state, traceback, request)
            size = encoding.size_of(columns)
            if size > encoding.LARGEST:
                raise ResultTooLarge(task_id, size, encoding.LARGEST)
            is_start = state == states.STARTED
            run = _current_run(task_id, agent) if is_start else None
            is_fresh = is_start and _is_first_run(request)
            return agent.store_result(task_id, columns, size, run, is_fresh=is_fresh)

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        row = self._read_result(str(task_id), LARGE)
        # A result that is larger has a connection to itself, and more time.
        while row is not None and row["result"] is None and row["size"]:
            row = self._read_result(str(task_id), row["size"])
        if row is None:
            return encoding.pending(task_id)
        return encoding.to_meta(self, row)

    def _read_result(self, task_id: str, largest: int) -> dict[str, Any] | None:
        with self._agent() as agent:
            return agent.call(
                lambda monitor: monitor.use_results(
                    lambda tables: tables.read_result(task_id, largest), size=largest
                )
            )

    def _forget(self, task_id: str) -> None:
        self._retry_before_5_7(lambda tables: tables.delete_result(str(task_id)))

    def _save_group(self, group_id: str, result: T) -> T:
        payload = encoding.encode_group(self, result)
        self._retry_before_5_7(lambda tables: tables.save_group(str(group_id), payload))
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        row = self._retry_before_5_7(lambda tables: tables.restore_group(str(group_id)))
        if row is None:
            return None
        value = encoding.decode_result(self, row["result"])
        group = None if value is None else result_from_tuple(value, self.app)
        return row | {"result": group}

    def _delete_group(self, group_id: str) -> None:
        self._retry_before_5_7(lambda tables: tables.delete_group(str(group_id)))

    def _decode_stored_result(self, payload: bytes | None) -> Any:
        return encoding.decode_result(self, payload)

    def _use_results(self, use: Callable[[ResultStore], Awaitable[T]]) -> T:
        with self._agent() as agent:
            return agent.call(lambda monitor: monitor.use_results(use))

    def _retry_before_5_7(self, use: Callable[[ResultStore], Awaitable[T]]) -> T:
        """Retry what Celery itself retries since 5.7."""
        return self._use_results(use) if RETRIES_EVERY_CALL else self._with_retries(use)

    def _with_retries(self, use: Callable[[ResultStore], Awaitable[T]]) -> T:
        """Retry as Celery does, with the delays that its settings give in milliseconds."""
        # Celery doubles the base before the first delay already.
        first = self.base_sleep_between_retries_ms * 2 / 1000
        longest = self.max_sleep_between_retries_ms / 1000
        backoff = Backoff(first, longest, jitter=True)
        while True:
            try:
                return self._use_results(use)
            except StoreUnavailable:
                if not self.always_retry or backoff.tries >= self.max_retries:
                    raise
            time.sleep(backoff.next_delay())

    @contextmanager
    def _agent(self) -> Generator[Agent]:
        """Lend this process's agent, or an agent for the time of the block.

        The main process of a prefork pool may fork at any time, so it keeps neither a
        thread nor a connection. It stores results only for tasks whose child cannot.
        """
        # Celery loads the backend at a moment that no signal tells: ask at each call.
        if not has_pool_children():
            yield agent_with(self._settings, self.app)
            return
        agent = Agent(self._settings, self.app)
        try:
            yield agent
        finally:
            agent.stop()

    @cached_property
    def _settings(self) -> Settings:
        """The app's settings; the DSN is replaced if this backend has its own URL."""
        dsn = parse_dsn(self.url, setting="result_backend")
        settings = read_settings(self.app)
        if settings.stores_results and (
            settings.dsn == dsn or self.app.conf.get("aioabort_dsn")
        ):
            return settings
        return replace(
            settings, dsn=dsn, listen_dsn=dsn, results_in_dsn=True, stores_results=True
        )

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        own: dict[str, Any] = {"url": self.url, "expires": self.expires}
        base: Any = super()
        return base.__reduce__(args, own | (kwargs or {}))


def _current_run(task_id: str, agent: Agent) -> Run | None:
    """Return the run of *task_id* in this thread, if *agent* watches it."""
    token = current.get()
    if isinstance(token, Run) and token.task_id == task_id:
        return token if token.supervisor is agent else None
    return None


def _is_first_run(request: Any) -> bool:
    """Whether the run of *request* is the first run of its publication."""
    delivery: Any = getattr(request, "delivery_info", None)
    is_again = bool(delivery) and (delivery.get("redelivered") or request.retries)
    return bool(delivery) and not is_again
