"""What becomes of a request, for those who hold its receipt."""

from collections.abc import Callable
from typing import Any

from anyio import move_on_after
from celery import states

from aioabort.producer.awaiting import Awaiting
from aioabort.producer.codec import has_stopped, never_began
from aioabort.producer.connections import Connections
from aioabort.producer.hub import View
from aioabort.records import AbortRequest, Outcome, TaskRow, TaskSnapshot

#: Seconds after the end of a task in which its worker says what became of the request.
#: After that, nobody may: not each task is run by a worker that knows of requests.
PATIENCE = 5.0


class Following:
    """Follows requests, over the connections of a client."""

    def __init__(self, connections: Connections, awaiting: Awaiting) -> None:
        self._connections = connections
        self._awaiting = awaiting

    async def seen(self, task_id: str, timeout: float | None) -> AbortRequest | None:
        """Return the request when its task has noticed it; None if it ended before."""

        def is_over(row: TaskRow) -> bool:
            return _has_seen(row) or _is_recorded(row) or self._shows(row, never_began)

        row = await self._follow(task_id, timeout, is_over, "notice its abort")
        return row.request if _has_seen(row) else None

    async def settled(self, task_id: str, timeout: float | None) -> Outcome:
        """Return how the task ended."""

        def is_over(row: TaskRow) -> bool:
            return _is_recorded(row) or self._shows(row, has_stopped, never_began)

        row = await self._follow(task_id, timeout, is_over, "end")
        if row.request is not None and row.request.outcome is not None:
            return row.request.outcome
        if row.state == states.REVOKED or self._shows(row, never_began):
            return "aborted"
        if not _has_seen(row):
            return "too_late"
        return "returned" if row.state == states.SUCCESS else "failed"

    async def _follow(
        self,
        task_id: str,
        timeout: float | None,
        is_over: Callable[[TaskRow], bool],
        verb: str,
    ) -> TaskRow:
        if timeout is not None and timeout <= 0:
            row = await self._awaiting.row(task_id)
            if is_over(row):
                return row
        else:
            with (
                move_on_after(timeout),
                self._connections.hub.watching(task_id) as view,
            ):
                return await _last(view, is_over)
        raise self._awaiting.late(task_id, timeout, verb)

    def _shows(self, row: TaskRow, *signs: Callable[[TaskSnapshot[Any]], bool]) -> bool:
        """Whether the end of the task shows by itself what became of the request."""
        if row.state not in states.PROPAGATE_STATES:
            return False
        snapshot = self._connections.results.decode(row)
        return any(shows(snapshot) for shows in signs)


async def _last(view: View, is_over: Callable[[TaskRow], bool]) -> TaskRow:
    row = await view.next()
    while not is_over(row):
        with move_on_after(PATIENCE if row.is_finished else None) as patience:
            row = await view.next()
        if patience.cancelled_caught:
            break
    return row


def _has_seen(row: TaskRow) -> bool:
    return row.request is not None and row.request.seen_at is not None


def _is_recorded(row: TaskRow) -> bool:
    """Whether nothing more will be recorded of the request, if there is one."""
    return row.is_finished if row.request is None else not row.request.is_pending
