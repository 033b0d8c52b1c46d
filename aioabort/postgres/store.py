"""What is asked of PostgreSQL, in the words of this package.

Every method raises StoreUnavailable when the server cannot be reached, and StoreError
when it refuses.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import asyncpg

from aioabort import telemetry
from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.postgres import statements
from aioabort.postgres.connection import Executor
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.hints import done_channel, encode_hints, request_channel
from aioabort.postgres.schema import create_result_tables, create_table, tables_of
from aioabort.postgres.tables import Tables
from aioabort.records import AbortRequest, Outcome, Stage, TaskRow
from aioabort.settings import Settings


async def open_store(executor: Executor, settings: Settings) -> "Store":
    """Return the store behind *executor*, its table created if it is missing."""
    tables = tables_of(settings)
    with driver_errors():
        [row] = await executor.fetch(
            statements.TABLES_EXIST, tables.request, tables.task
        )
        if not row["has_request"]:
            await _create_table(executor, tables, settings)
        has_task = row["has_task"]
        if not has_task and settings.stores_results and settings.create_tables:
            await create_result_tables(executor, tables)
            has_task = True
    has_results = settings.results_in_dsn and has_task
    return Store(executor, replace(tables, has_results=has_results), settings)


async def _create_table(executor: Executor, tables: Tables, settings: Settings) -> None:
    if not settings.create_tables:
        raise StoreError(
            f"the table {tables.request} is missing in {settings.dsn}, "
            "and aioabort_create_tables is False"
        )
    await create_table(executor, tables)


class Store:
    """The request table, Celery's result table beside it, and the two channels."""

    def __init__(self, executor: Executor, tables: Tables, settings: Settings) -> None:
        self.has_results: bool = tables.has_results
        self._executor = executor
        self._tables = tables
        self._notify = settings.notify
        self._request_expires = settings.request_expires
        self.request_channel: str = request_channel(tables)
        self.done_channel: str = done_channel(tables)
        self._request = tables.fill(
            statements.REQUEST if self.has_results else statements.REQUEST_ALONE
        )
        self._observe = tables.fill(
            statements.OBSERVE if self.has_results else statements.OBSERVE_ALONE
        )
        self._states = tables.fill(
            statements.STATES if self.has_results else statements.OBSERVE_ALONE
        )
        self._snapshot = tables.fill(
            statements.SNAPSHOT if self.has_results else statements.OBSERVE_ALONE
        )
        self._look = tables.fill(statements.LOOK)
        self._record_seen = tables.fill(statements.RECORD_SEEN)
        self._record_outcome = tables.fill(statements.RECORD_OUTCOME)
        self._give_up_results = tables.fill(statements.GIVE_UP_RESULTS)
        self._settle = tables.fill(
            statements.SETTLE if self.has_results else statements.SETTLE_ALONE
        )
        self._hasten = tables.fill(statements.HASTEN)
        self._claim_kill = tables.fill(statements.CLAIM_KILL)
        self._claim_overdue = tables.fill(statements.CLAIM_OVERDUE)
        self._list_requests = tables.fill(statements.LIST_REQUESTS)
        self._delete_expired = tables.fill(statements.DELETE_EXPIRED)

    async def request(
        self,
        task_ids: Sequence[str],
        reason: str | None = None,
        requested_by: str | None = None,
        grace: float | None = None,
    ) -> dict[str, AbortRequest]:
        """Ask the tasks to stop, in one statement; return the requests that are new.

        An id that is missing from them had ended, or was asked before.
        """
        with telemetry.requesting(task_ids) as traceparent:
            requests = await self._requests(
                self._request,
                task_ids,
                reason,
                requested_by,
                self._request_expires,
                grace,
                traceparent,
            )
        telemetry.requested(len(task_ids), len(requests))
        return requests

    async def observe(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Return the rows of those tasks that were ever asked to stop."""
        return await self._rows(self._observe, task_ids)

    async def unfinished(
        self, criteria: Mapping[str, Any], after: str, limit: int
    ) -> list[str]:
        """Return the ids of tasks that have not ended, in order, from *after* on.

        Raises StoreError if Celery's table does not have what they are known by.
        """
        statement = self._tables.fill(statements.unfinished(criteria))
        try:
            rows = await self._fetch(statement, after, limit, *criteria.values())
        except StoreError as error:
            if not isinstance(error.__cause__, asyncpg.UndefinedColumnError):
                raise
            raise StoreError(
                f"{self._tables.task} does not say which task, worker and queue a row "
                f"is of: it was created without result_extended ({error.__cause__})"
            ) from error
        return [row["task_id"] for row in rows]

    async def states(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Return the rows of the tasks without their results, which may be large."""
        return await self._rows(self._states, task_ids)

    async def snapshots(self, task_ids: Sequence[str]) -> dict[str, TaskRow]:
        """Return the rows of the tasks; one never heard of has neither state nor request."""
        return await self._rows(self._snapshot, task_ids)

    async def look(
        self, task_ids: Sequence[str], closely: Sequence[str]
    ) -> dict[str, TaskRow]:
        """Return the rows of *task_ids* that have ended, and *closely*'s.

        The two have no id in common.
        """
        return await self._rows(self._look, task_ids, closely)

    async def record_seen(
        self, requests: Sequence[AbortRequest], ages: Sequence[float], seen_by: str
    ) -> list[Stage]:
        """Note that the tasks saw their requests, *ages* seconds ago.

        Returns those of which that was not known.
        """
        rows = await self._fetch(
            self._record_seen,
            [request.task_id for request in requests],
            [request.requested_at for request in requests],
            ages,
            seen_by,
        )
        return _to_stages(rows)

    async def record_outcomes(
        self,
        requests: Sequence[AbortRequest],
        outcomes: Sequence[Outcome],
        ages: Sequence[float],
    ) -> list[Stage]:
        """Note how the tasks ended, *ages* seconds ago; what was noted before stays.

        Returns those of which that was not known.
        """
        rows = await self._fetch(
            self._record_outcome,
            [request.task_id for request in requests],
            [request.requested_at for request in requests],
            outcomes,
            ages,
        )
        return _to_stages(rows)

    async def hasten(
        self, task_ids: Sequence[str], grace: float
    ) -> dict[str, AbortRequest]:
        """Have pending requests end in a kill after *grace* seconds, if not before.

        Returns these requests.
        """
        return await self._requests(self._hasten, task_ids, grace)

    async def give_up_results(self, task_ids: Sequence[str]) -> None:
        """Have the outcomes of the tasks' requests tell that they have ended."""
        if self.has_results:
            await self._fetch(self._give_up_results, task_ids)

    async def settle(self, outcomes: Mapping[str, Outcome]) -> list[AbortRequest]:
        """Note how tasks ended just now, by their ids; return the requests settled by it.

        A result that Celery has stored counts for more, and ``failed`` is noted as
        ``too_late`` of a task that had not seen its request.
        """
        rows = await self._fetch(self._settle, [*outcomes], [*outcomes.values()])
        telemetry.stopped(map(_to_end, rows))
        return list(map(_to_request, rows))

    async def claim_kill(self, request: AbortRequest) -> bool:
        """Take the kill off the request; return whether it is ours to carry it out."""
        return bool(
            await self._fetch(self._claim_kill, request.task_id, request.requested_at)
        )

    async def claim_overdue_kills(self, late: float) -> list[str]:
        """Return the tasks that are to be killed by us, as nobody did in *late* seconds."""
        rows = await self._fetch(self._claim_overdue, late)
        return [row["task_id"] for row in rows]

    async def requests(self, limit: int, *, pending: bool) -> list[AbortRequest]:
        """Return the *limit* latest requests, or those of them that are pending."""
        rows = await self._fetch(self._list_requests, limit, pending)
        return [_to_request(row) for row in rows]

    async def delete_expired(self, limit: int) -> int:
        """Delete *limit* requests at most that have expired; return how many."""
        [row] = await self._fetch(self._delete_expired, limit)
        deleted: int = row["deleted"]
        return deleted

    async def hint_workers(self, task_ids: Iterable[str]) -> None:
        """Tell workers to look at the requests of *task_ids*."""
        await self._hint(self.request_channel, task_ids)

    async def hint_clients(self, task_ids: Iterable[str]) -> None:
        """Tell clients to look at *task_ids*."""
        await self._hint(self.done_channel, task_ids)

    async def _hint(self, channel: str, task_ids: Iterable[str]) -> None:
        # Always a transaction of its own: a NOTIFY in a transaction that writes makes
        # every such commit of the cluster wait for the one before it.
        if not self._notify:
            return
        payloads = [*encode_hints(task_ids)]
        try:
            await self._fetch(statements.NOTIFY, channel, payloads)
        except StoreUnavailable:
            raise
        except StoreError:
            await self._fetch(statements.TRIM_QUEUE)
            await self._fetch(statements.NOTIFY, channel, payloads)

    async def _requests(self, statement: str, *args: Any) -> dict[str, AbortRequest]:
        rows = await self._fetch(statement, *args)
        return {row["task_id"]: _to_request(row) for row in rows}

    async def _rows(
        self, statement: str, *task_ids: Sequence[str]
    ) -> dict[str, TaskRow]:
        rows = await self._fetch(statement, *task_ids)
        return {row["task_id"]: to_row(row) for row in rows}

    async def _fetch(self, statement: str, *args: Any) -> list[asyncpg.Record]:
        with driver_errors():
            return await self._executor.fetch(statement, *args)


def _to_request(row: asyncpg.Record) -> AbortRequest:
    return AbortRequest(
        task_id=row["task_id"],
        requested_at=row["requested_at"],
        reason=row["reason"],
        requested_by=row["requested_by"],
        kill_at=row["kill_at"],
        seen_at=row["seen_at"],
        seen_by=row["seen_by"],
        outcome=row["outcome"],
        outcome_at=row["outcome_at"],
    )


def _to_stages(rows: list[asyncpg.Record]) -> list[Stage]:
    return [Stage(**dict(row)) for row in rows]


def _to_end(row: asyncpg.Record) -> Stage:
    return Stage(
        task_id=row["task_id"],
        after=row["after"],
        ago=0.0,
        outcome=row["outcome"],
        traceparent=row["traceparent"],
    )


def to_row(row: asyncpg.Record) -> TaskRow:
    """Return a row of a statement as a record."""
    return TaskRow(
        task_id=row["task_id"],
        state=row["status"],
        result=row.get("result"),
        traceback=row.get("traceback"),
        date_done=row.get("date_done"),
        request=None if row["requested_at"] is None else _to_request(row),
        kill_in=row["kill_in"],
    )
