"""Requests to abort: of which tasks, and what PostgreSQL answers."""

from dataclasses import dataclass, replace
from itertools import islice

from celery import states

from aioabort.producer.canvas import Part
from aioabort.producer.connections import Connections
from aioabort.producer.limits import check_grace, check_text
from aioabort.records import AbortReceipt, AbortRequest, Follower, TaskRow
from aioabort.watcher import BATCH


@dataclass(frozen=True, slots=True)
class Demand:
    """What tasks are told when they are asked to stop; InvalidRequest if it cannot be."""

    reason: str | None = None
    requested_by: str | None = None
    grace: float | None = None

    def __post_init__(self) -> None:
        check_text("reason", self.reason)
        check_text("requested_by", self.requested_by)
        check_grace(self.grace)


class Aborting:
    """Asks tasks to stop, over the connections of a client."""

    def __init__(self, connections: Connections, follower: Follower) -> None:
        self._connections = connections
        self._follower = follower

    async def request(self, parts: list[Part], demand: Demand) -> list[AbortReceipt]:
        """Ask for the abort of *parts* and of all before them; return their receipts."""
        # Of each of these tuples many parts may have the same.
        before = {id(part.before): part.before for part in parts}
        ids = dict.fromkeys(
            [task_id for ids in before.values() for task_id in ids]
            + [part.task_id for part in parts]
        )
        receipts: dict[str, AbortReceipt] = {}
        remaining = iter(ids)
        while batch := list(islice(remaining, BATCH)):
            receipts.update(await self._request(batch, demand))
        receipts_before = {
            key: tuple(receipts[task_id] for task_id in ids)
            for key, ids in before.items()
        }
        return [
            replace(receipts[part.task_id], before=receipts_before[id(part.before)])
            if part.before
            else receipts[part.task_id]
            for part in parts
        ]

    async def _request(
        self, task_ids: list[str], demand: Demand
    ) -> dict[str, AbortReceipt]:
        """Ask for the abort of at most 1,000 tasks, in one statement.

        What fails between two of these leaves the tasks of the first ones asked; to ask
        them again does no harm.
        """
        store = self._connections.store
        rows = await self._finished_elsewhere(task_ids)
        asked = [task_id for task_id in task_ids if task_id not in rows]
        new = await store.request(
            asked, demand.reason, demand.requested_by, demand.grace
        )
        old = [task_id for task_id in asked if task_id not in new]
        hastened: dict[str, AbortRequest] = {}
        if old and demand.grace is not None:
            hastened = await store.hasten(old, demand.grace)
        self._connections.hints.send([*new, *hastened])
        if unknown := [task_id for task_id in old if task_id not in hastened]:
            rows |= await store.states(unknown)
        return {
            task_id: self._receipt(
                task_id, new.get(task_id), hastened.get(task_id), rows.get(task_id)
            )
            for task_id in task_ids
        }

    async def _finished_elsewhere(self, task_ids: list[str]) -> dict[str, TaskRow]:
        """Return the rows of those tasks that have ended by Celery's own backend.

        None if the results are in PostgreSQL, where the request itself finds out.
        """
        if self._connections.store.has_results:
            return {}
        rows = await self._connections.results.snapshots(task_ids)
        return {
            task_id: row
            for task_id, row in rows.items()
            if row.state in states.READY_STATES
        }

    def _receipt(
        self,
        task_id: str,
        new: AbortRequest | None,
        hastened: AbortRequest | None,
        row: TaskRow | None,
    ) -> AbortReceipt:
        request = new or hastened or (row.request if row is not None else None)
        state = row.state if row is not None else None
        is_finished = state in states.READY_STATES
        return AbortReceipt(
            task_id=task_id,
            answer="requested"
            if new is not None
            else "finished"
            if is_finished
            else "requested_before",
            state=state if is_finished else None,
            request=request,
            follower=self._follower,
        )
