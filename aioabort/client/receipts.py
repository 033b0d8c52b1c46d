"""Following an abort request: when its task sees it, and how the task ends."""

from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

from anyio import move_on_after
from celery import states

from aioabort.client.connections import Connections
from aioabort.client.decoding import has_stopped, never_began
from aioabort.client.waiters import ChangeReader
from aioabort.client.waiting import ResultAwaiter
from aioabort.exceptions import (
    SeenTimeout,
    StoreError,
    StoreUnavailable,
    WaitTimeout,
)
from aioabort.models import AbortRequest, Outcome, TaskRow, TaskSnapshot
from aioabort.timing import check_timeout


class RequestFollower:
    """Implements ``AbortReceipt.seen()`` and ``AbortReceipt.settled()`` for a client."""

    def __init__(self, connections: Connections, awaiter: ResultAwaiter) -> None:
        self._connections = connections
        self._awaiter = awaiter

    async def seen(self, task_id: str, timeout: float | None) -> AbortRequest | None:
        """Return the request when its task has seen it; None if the task ended before.

        Raises SeenTimeout after *timeout* seconds.
        """

        def is_over(row: TaskRow) -> bool:
            return _is_seen(row) or _is_final(row) or self._shows(row, never_began)

        row = await self._wait_until(is_over, task_id, timeout, SeenTimeout)
        return row.request if _is_seen(row) else None

    async def settled(self, task_id: str, timeout: float | None) -> Outcome:
        """Return how the task ended. Raises WaitTimeout after *timeout* seconds."""

        def is_over(row: TaskRow) -> bool:
            return _is_final(row) or self._shows(row, never_began)

        row = await self._wait_until(is_over, task_id, timeout, WaitTimeout)
        if row.request is None:
            return self._derive(row)
        if row.request.outcome is not None:
            return row.request.outcome
        outcome = self._derive(row)
        # No worker has done so in time. Later answers have to agree with this one.
        with suppress(StoreError):
            store = self._connections.store
            await store.record_outcomes([row.request], [outcome], [0.0])
            await store.notify_clients([task_id])
        return outcome

    def _derive(self, row: TaskRow) -> Outcome:
        """Return the outcome that the final state of a task shows."""
        # Celery's own revoke stores REVOKED, too, without any abort.
        is_revoked = row.state == states.REVOKED and row.request is not None
        if is_revoked or self._shows(row, has_stopped, never_began):
            return "aborted"
        if not _is_seen(row):
            return "too_late"
        return "returned" if row.state == states.SUCCESS else "failed"

    async def _wait_until(
        self,
        is_over: Callable[[TaskRow], bool],
        task_id: str,
        timeout: float | None,
        error_class: type[WaitTimeout],
    ) -> TaskRow:
        timeout = check_timeout(timeout)
        if timeout is not None and timeout <= 0:
            row = await self._awaiter.read_row(task_id)
            if is_over(row):
                return row
        else:
            with move_on_after(timeout):
                return await self._watch_until(is_over, task_id)
        raise self._awaiter.timed_out(task_id, timeout, error_class)

    async def _watch_until(
        self, is_over: Callable[[TaskRow], bool], task_id: str
    ) -> TaskRow:
        """Return the first row that *is_over*.

        Or the row of a task that has ended, if its worker records no outcome within
        the settle timeout: not every worker knows of abort requests.
        """
        with self._connections.waiters.watching(task_id) as changes:
            row = await changes.next_row()
            while not is_over(row):
                if not row.is_finished:
                    row = await changes.next_row()
                elif (recorded := await self._next_in_time(changes, task_id)) is None:
                    break
                else:
                    row = recorded
        return row

    async def _next_in_time(
        self, changes: ChangeReader, task_id: str
    ) -> TaskRow | None:
        """Return the next row, or None if there is none within the settle timeout.

        The timeout counts only if a worker could record the outcome in its second half:
        while PostgreSQL is away, or the request is locked, no worker can.
        """
        half = self._connections.settings.timing.settle_timeout / 2
        while True:
            began_at = monotonic()
            with move_on_after(half):
                return await changes.next_row()
            is_writable = await self._is_writable(task_id)
            with move_on_after(half):
                return await changes.next_row()
            if is_writable and self._connections.last_error_at < began_at:
                return None

    async def _is_writable(self, task_id: str) -> bool:
        try:
            await self._connections.store.rewrite_request(task_id)
        except StoreUnavailable:
            return False
        return True

    def _shows(self, row: TaskRow, *signs: Callable[[TaskSnapshot[Any]], bool]) -> bool:
        """Whether the result of the task shows one of *signs*, without an outcome."""
        if row.state not in states.PROPAGATE_STATES:
            return False
        snapshot = self._connections.results.decode(row)
        return any(shows(snapshot) for shows in signs)


def _is_seen(row: TaskRow) -> bool:
    return row.request is not None and row.request.seen_at is not None


def _is_final(row: TaskRow) -> bool:
    """Whether workers record nothing more: the outcome is known, or none was asked for."""
    return row.is_finished if row.request is None else not row.request.is_pending
