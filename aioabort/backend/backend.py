"""The result backend: Celery's interface, Celery's tables, and one statement a call."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

from celery import states
from celery.backends.base import BaseBackend
from celery.exceptions import ImproperlyConfigured
from celery.result import result_from_tuple
from celery.utils.time import get_exponential_backoff_interval, maybe_timedelta

from aioabort.backend import encoding
from aioabort.backend.calls import agent_at
from aioabort.dsn import parse_dsn
from aioabort.exceptions import ResultTooLarge, StoreUnavailable
from aioabort.postgres.results import ResultTables
from aioabort.records import ABORTED
from aioabort.settings import Settings, read_settings
from aioabort.worker.run import Run
from aioabort.worker.token import current

#: As with Celery's database backend, unless the settings say otherwise.
MAX_RETRIES = 3

#: Before 5.7, Celery tries again only to store a result and to read one.
RETRIES_ALL = hasattr(BaseBackend, "_ensure_retryable")

T = TypeVar("T")


class PostgresBackend(BaseBackend):
    """Results in PostgreSQL, in the tables of Celery's database backend.

    Its statements run on the one connection that this process has for aborts, too. It
    holds nothing itself, so it may be forked, pickled and shared by threads.
    """

    subpolling_interval: float | None = 0.5
    #: The statement that stores STARTED asks whether the task is to stop.
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
        # One for all threads and greenlets of the app, which would else make their own.
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
        """Whether anything is stored of the task."""
        exists = self._retrying(lambda tables: tables.exists(str(task_id)))
        return bool(exists)

    def cleanup(self) -> None:
        """Delete what has expired, by and by."""
        age = self.expires
        if age:
            seconds = age.total_seconds() if isinstance(age, timedelta) else float(age)
            self._retrying(lambda tables: tables.delete_expired(seconds))

    def _store_result(
        self,
        task_id: str,
        result: object,
        state: str,
        traceback: object = None,
        request: Any = None,
        **_: object,
    ) -> None:
        task_id = str(task_id)
        with agent_at(self._settings, self.app) as agent:
            if state == ABORTED:
                agent.request(task_id)
                return
            columns = encoding.to_columns(self, result, state, traceback, request)
            size = encoding.size_of(columns)
            if size > encoding.LARGEST:
                raise ResultTooLarge(task_id, size, encoding.LARGEST)
            token = current.get()
            run = token if isinstance(token, Run) and token.task_id == task_id else None
            if state != states.STARTED or (run and run.supervisor is not agent):
                run = None
            is_fresh = state == states.STARTED and _is_delivered_once(request)
            agent.store(task_id, columns, size, run, is_fresh=is_fresh)

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        row = self._on_results(lambda tables: tables.read(str(task_id)))
        if row is None:
            return encoding.pending(task_id)
        return encoding.to_meta(self, row)

    def _forget(self, task_id: str) -> None:
        self._retried(lambda tables: tables.forget(str(task_id)))

    def _save_group(self, group_id: str, result: T) -> T:
        payload = encoding.encode_group(self, result)
        self._retried(lambda tables: tables.save_group(str(group_id), payload))
        return result

    def _restore_group(self, group_id: str) -> dict[str, Any] | None:
        row = self._retried(lambda tables: tables.restore_group(str(group_id)))
        if row is None:
            return None
        value = encoding.decode_result(self, row["result"])
        group = None if value is None else result_from_tuple(value, self.app)
        return row | {"result": group}

    def _delete_group(self, group_id: str) -> None:
        self._retried(lambda tables: tables.delete_group(str(group_id)))

    def _decode_stored_result(self, payload: bytes | None) -> Any:
        return encoding.decode_result(self, payload)

    def _on_results(self, act: Callable[[ResultTables], Awaitable[T]]) -> T:
        with agent_at(self._settings, self.app) as agent:
            return agent.on_results(act)

    def _retried(self, act: Callable[[ResultTables], Awaitable[T]]) -> T:
        """For what Celery itself tries again, if it is not too old for that."""
        return self._on_results(act) if RETRIES_ALL else self._retrying(act)

    def _retrying(self, act: Callable[[ResultTables], Awaitable[T]]) -> T:
        """For what Celery leaves to its backends to try again."""
        retries = 0
        while True:
            try:
                return self._on_results(act)
            except StoreUnavailable:
                if not self.always_retry or retries >= self.max_retries:
                    raise
            retries += 1
            milliseconds = get_exponential_backoff_interval(
                self.base_sleep_between_retries_ms,
                retries,
                self.max_sleep_between_retries_ms,
                full_jitter=True,
            )
            time.sleep(milliseconds / 1000)

    @cached_property
    def _settings(self) -> Settings:
        """The settings of the app, of which a backend with a URL of its own has another."""
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
        celerys: Any = super()
        return celerys.__reduce__(args, own | (kwargs or {}))


def _is_delivered_once(request: Any) -> bool:
    """Whether the run of *request* is the first one of its publication."""
    delivery: Any = getattr(request, "delivery_info", None)
    return bool(delivery) and not delivery.get("redelivered")
