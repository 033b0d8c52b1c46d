"""Statements about abort requests, as methods.

Every method raises StoreBusy if PostgreSQL is busy for too long, StoreUnavailable if it
cannot be reached, and StoreError if it refuses.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from typing import Any, Self

import asyncpg

from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.models import AbortRequest, Outcome, Stage, TaskRow
from aioabort.postgres import read_statements as reading
from aioabort.postgres import request_statements as statements
from aioabort.postgres.connection import Executor, connect
from aioabort.postgres.locating import (
    check_listener_leads_to_same_table,
    check_pool_leads_to_same_table,
)
from aioabort.postgres.notifications import (
    done_channel,
    encode_notifications,
    request_channel,
)
from aioabort.postgres.patience import fetch_patiently
from aioabort.postgres.rows import to_last_stage, to_request, to_task_row
from aioabort.postgres.schema import open_tables
from aioabort.postgres.search_statements import find_unfinished
from aioabort.postgres.tables import Tables
from aioabort.settings import Settings
from aioabort.telemetry import instruments


async def open_request_store(executor: Executor, settings: Settings) -> "RequestStore":
    """Return the store on *executor*; create missing tables if the settings allow it."""
    return RequestStore(executor, await open_tables(executor, settings), settings)


async def open_request_store_on_lent_pool(
    pool: Executor, settings: Settings
) -> "RequestStore":
    """Return the store on the user's *pool*, for the tables that our connection finds.

    Raises StoreError if the pool leads to another database.
    """
    async with connect(settings.dsn, settings.timing) as own:
        tables = await open_tables(own, settings)
        await check_pool_leads_to_same_table(pool, own, tables, settings)
    return RequestStore(pool, tables, settings)


class RequestStore:
    """The request table, Celery's result table beside it, and the two channels."""

    def __init__(self, executor: Executor, tables: Tables, settings: Settings) -> None:
        self.has_results: bool = tables.has_results
        self.tables: Tables = tables
        self._executor = executor
        self._settings = settings
        self._notifies = settings.notify
        self._request_expires = settings.request_expires
        #: For how many seconds a statement is repeated while PostgreSQL is busy.
        self.patience: float = settings.timing.busy_timeout
        self.request_channel: str = request_channel(tables)
        self.done_channel: str = done_channel(tables)
        if self.has_results:
            self._request_aborts = tables.fill(statements.REQUEST_ABORTS)
            self._read_aborts = tables.fill(reading.READ_ABORTS)
            self._read_states = tables.fill(reading.READ_STATES)
            self._read_snapshots = tables.fill(reading.READ_SNAPSHOTS)
            self._settle_requests = tables.fill(statements.SETTLE_REQUESTS)
        else:
            self._request_aborts = tables.fill(statements.REQUEST_ABORTS_ALONE)
            self._read_aborts = tables.fill(reading.READ_ABORTS_ALONE)
            self._read_states = self._read_snapshots = self._read_aborts
            self._settle_requests = tables.fill(statements.SETTLE_REQUESTS_ALONE)
        self._read_for_waiters = tables.fill(reading.READ_FOR_WAITERS)
        self._rewrite_request = tables.fill(statements.REWRITE_REQUEST)
        self._record_seen = tables.fill(statements.RECORD_SEEN)
        self._record_outcomes = tables.fill(statements.RECORD_OUTCOMES)
        self._reset_to_aborted = tables.fill(statements.RESET_TO_ABORTED)
        self._shorten_grace = tables.fill(statements.SHORTEN_GRACE)
        self._claim_kill = tables.fill(statements.CLAIM_KILL)
        self._claim_overdue_kills = tables.fill(statements.CLAIM_OVERDUE_KILLS)
        self._list_requests = tables.fill(statements.LIST_REQUESTS)
        self._delete_expired = tables.fill(statements.DELETE_EXPIRED)

    def with_patience(self, seconds: float) -> Self:
        """Return this store, which repeats statements for *seconds* at most."""
        store = copy(self)
        store.patience = seconds
        return store

    def on(self, executor: Executor) -> Self:
        """Return this store, which runs its statements on *executor*."""
        store = copy(self)
        store._executor = executor
        return store

    async def check_listener(self, listener: Executor) -> None:
        """Raise StoreError if *listener* is connected to another database or table."""
        if self._settings.listen_dsn != self._settings.dsn:
            await check_listener_leads_to_same_table(
                listener, self._executor, self.tables, self._settings
            )

    async def request_aborts(
        self,
        task_ids: Sequence[str],
        reason: str | None = None,
        requested_by: str | None = None,
        grace: float | None = None,
        settled: Iterable[AbortRequest] = (),
    ) -> dict[str, AbortRequest]:
        """Store abort requests in one statement; return the new ones.

        A task without a new request has ended or has a pending request already. If one
        of the ids is that of a saved group, no request is stored. If the results are not
        in PostgreSQL, only the *settled* requests are replaced by new ones.
        """
        replaced = list(settled)
        more: tuple[Any, ...] = ()
        if not self.has_results:
            more = (
                [request.task_id for request in replaced],
                [request.requested_at for request in replaced],
            )
        with instruments().requesting(task_ids) as traceparent:
            requests = await self._fetch_requests(
                self._request_aborts,
                task_ids,
                reason,
                requested_by,
                self._request_expires,
                grace,
                traceparent,
                *more,
            )
        instruments().requested(len(task_ids), len(requests))
        return requests

    async def find_groups(self, ids: Sequence[str]) -> list[str]:
        """Return those of *ids* that are ids of saved groups."""
        if not self.tables.has_groups:
            return []
        rows = await self._fetch(self.tables.fill(statements.FIND_GROUPS), ids)
        return [row["group_id"] for row in rows]

    async def read_aborts(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Return the rows of tasks with an abort request or in the state ABORTED."""
        return await self._fetch_rows(self._read_aborts, task_ids)

    async def read_states(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Return the rows of all tasks, without the results, which may be large."""
        return await self._fetch_rows(self._read_states, task_ids)

    async def read_snapshots(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Return the rows of all tasks; an unknown task has no state and no request."""
        return await self._fetch_rows(self._read_snapshots, task_ids)

    async def read_for_waiters(
        self, awaited: Sequence[str], watched: Sequence[str]
    ) -> dict[str, TaskRow]:
        """Return the rows of *awaited* tasks that have ended and of all *watched* tasks.

        No id may be in both.
        """
        return await self._fetch_rows(self._read_for_waiters, awaited, watched)

    async def read_part(
        self, task_id: str, column: str, offset: int, size: int
    ) -> tuple[int | None, bytes | None]:
        """Return the version of the task's row, and a part of its *column*.

        That is *size* bytes from *offset* on, less at the end of the value; None if the
        column is NULL.
        """
        statement = self.tables.fill(reading.READ_PART[column])
        for row in await self._fetch(statement, task_id, offset, size):
            return row["version"], row["part"]
        return None, None

    async def find_unfinished(
        self, criteria: Mapping[str, Any], after: str, limit: int
    ) -> list[str]:
        """Return the ids of up to *limit* unfinished tasks, sorted, from *after* on.

        Raises StoreError if Celery's result table lacks the column of a criterion.
        """
        statement = self.tables.fill(find_unfinished(self.tables.dialect, criteria))
        try:
            rows = await self._fetch(statement, after, limit, *criteria.values())
        except StoreError as error:
            if not isinstance(error.__cause__, asyncpg.UndefinedColumnError):
                raise
            raise StoreError(
                f"{self.tables.task} has no columns for the task's name, worker and "
                f"queue: it was created without result_extended ({error.__cause__})"
            ) from error
        return [row["task_id"] for row in rows]

    async def rewrite_request(self, task_id: str) -> None:
        """Write the pending request of the task as it is.

        This waits for the locks that a worker waits for which records the outcome.
        """
        await self._fetch(self._rewrite_request, task_id)

    async def record_seen(
        self, requests: Sequence[AbortRequest], ages: Sequence[float], seen_by: str
    ) -> list[Stage]:
        """Record that the tasks saw their abort requests *ages* seconds ago.

        Returns the stages that were not recorded before.
        """
        rows = await self._fetch(
            self._record_seen,
            [request.task_id for request in requests],
            [request.requested_at for request in requests],
            ages,
            seen_by,
        )
        return [Stage(**dict(row)) for row in rows]

    async def record_outcomes(
        self,
        requests: Sequence[AbortRequest],
        outcomes: Sequence[Outcome],
        ages: Sequence[float],
    ) -> list[Stage]:
        """Record how the tasks ended *ages* seconds ago; a recorded outcome stays.

        Returns the stages that were not recorded before.
        """
        rows = await self._fetch(
            self._record_outcomes,
            [request.task_id for request in requests],
            [request.requested_at for request in requests],
            outcomes,
            ages,
        )
        return [Stage(**dict(row)) for row in rows]

    async def reset_to_aborted(self, task_ids: Sequence[str]) -> None:
        """Set the tasks to ABORTED that have ended without storing a final state.

        With a recorded outcome, ABORTED counts as the end of a task.
        """
        if self.has_results:
            await self._fetch(self._reset_to_aborted, task_ids)

    async def settle_requests(
        self, outcomes: Mapping[str, Outcome]
    ) -> list[AbortRequest]:
        """Record the *outcomes* of tasks, by task id; return the requests it settles.

        A final state that Celery has stored decides over *outcomes*. ``failed`` is
        recorded as ``too_late`` if the task had not seen its request.
        """
        rows = await self._fetch(
            self._settle_requests, [*outcomes], [*outcomes.values()]
        )
        instruments().stopped(map(to_last_stage, rows))
        return [to_request(row) for row in rows]

    async def shorten_grace(
        self, task_ids: Sequence[str], grace: float
    ) -> dict[str, AbortRequest]:
        """Have tasks with a pending request killed after *grace* seconds at the latest.

        Returns all pending requests of the tasks.
        """
        return await self._fetch_requests(self._shorten_grace, task_ids, grace)

    async def claim_kill(self, request: AbortRequest) -> bool:
        """Return whether this process, and no other, has to kill the task."""
        rows = await self._fetch(
            self._claim_kill, request.task_id, request.requested_at
        )
        return bool(rows)

    async def claim_overdue_kills(self, late: float) -> list[str]:
        """Claim kills that are more than *late* seconds overdue; return the task ids."""
        rows = await self._fetch(self._claim_overdue_kills, late)
        return [row["task_id"] for row in rows]

    async def list_requests(self, limit: int, *, pending: bool) -> list[AbortRequest]:
        """Return the *limit* latest requests, or the latest *pending* ones."""
        rows = await self._fetch(self._list_requests, limit, pending)
        return [to_request(row) for row in rows]

    async def delete_expired(self, limit: int) -> int:
        """Delete up to *limit* expired requests; return the number of deleted ones."""
        [row] = await self._fetch(self._delete_expired, limit)
        deleted: int = row["deleted"]
        return deleted

    async def notify_workers(self, task_ids: Iterable[str]) -> None:
        """Notify the workers that the tasks have new abort requests."""
        await self._notify(self.request_channel, task_ids)

    async def notify_clients(self, task_ids: Iterable[str]) -> None:
        """Notify the clients that the tasks have ended."""
        await self._notify(self.done_channel, task_ids)

    async def _notify(self, channel: str, task_ids: Iterable[str]) -> None:
        # Never in a transaction that also writes: PostgreSQL serializes the commits of
        # all such transactions in the cluster.
        if not self._notifies:
            return
        payloads = [*encode_notifications(task_ids)]
        try:
            await self._fetch(statements.NOTIFY, channel, payloads)
        except StoreUnavailable:
            raise
        except StoreError:
            await self._fetch(statements.TRIM_QUEUE)
            await self._fetch(statements.NOTIFY, channel, payloads)

    async def _fetch_requests(
        self, statement: str, *args: Any
    ) -> dict[str, AbortRequest]:
        rows = await self._fetch(statement, *args)
        return {row["task_id"]: to_request(row) for row in rows}

    async def _fetch_rows(
        self, statement: str, *task_ids: Sequence[str]
    ) -> dict[str, TaskRow]:
        rows = await self._fetch(statement, *task_ids)
        return {row["task_id"]: to_task_row(row) for row in rows}

    async def _fetch(self, statement: str, *args: Any) -> list[asyncpg.Record]:
        return await fetch_patiently(self._executor, self.patience, statement, *args)
