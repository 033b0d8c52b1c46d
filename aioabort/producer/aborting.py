"""Requests to abort: of which tasks, and what PostgreSQL answers."""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from anyio import to_thread
from celery import states
from celery.result import AsyncResult, ResultSet

from aioabort.exceptions import InvalidRequest, StoreError
from aioabort.postgres.store import Store
from aioabort.producer.canvas import Part, parts_of
from aioabort.producer.connections import Connections
from aioabort.producer.limits import check_grace, check_task_id, check_text
from aioabort.records import AbortReceipt, AbortRequest, TaskRow
from aioabort.watcher import BATCH

logger: logging.Logger = logging.getLogger(__name__)


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


async def parts_of_all(targets: Any) -> list[Part]:
    """Return the tasks that *targets* stand for, in their order.

    Raises InvalidRequest for the first of them that is neither an id nor a result.
    """
    if _is_one(targets):
        return list(_parts(targets))
    if not _are_many(targets):
        raise InvalidRequest(
            f"A task is named by its id or its result, not {targets!r}"
        )
    parts: list[Part] = []
    items: Iterator[object] = iter(targets)
    while batch := list(islice(items, BATCH)):
        parts.extend(part for item in batch for part in _parts(item))
        # A hundred thousand take a while, in which others are served.
        await asyncio.sleep(0)
    return parts


def _is_one(target: object) -> bool:
    return isinstance(target, str | AsyncResult | ResultSet)


def _are_many(targets: object) -> bool:
    # A signature is a mapping: its keys are no ids.
    is_other = isinstance(targets, bytes | Mapping)
    return isinstance(targets, Iterable) and not is_other


def _parts(item: object) -> Iterable[Part]:
    if isinstance(item, AsyncResult | ResultSet):
        parts = list(parts_of(item))
        for part in parts:
            check_task_id(part.task_id)
        return parts
    check_task_id(item)
    return [Part(str(item))]


class Aborting:
    """Asks tasks to stop, over the connections of a client."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def request(self, parts: list[Part], demand: Demand) -> list[AbortReceipt]:
        """Ask for the abort of *parts* and of all before them; return their receipts."""
        store = self._connections.store
        # Of each of these tuples many parts may have the same.
        before = {id(part.before): part.before for part in parts}
        ids = dict.fromkeys(
            [task_id for ids in before.values() for task_id in ids]
            + [part.task_id for part in parts]
        )
        receipts: dict[str, AbortReceipt] = {}
        remaining = iter(ids)
        while batch := list(islice(remaining, BATCH)):
            receipts.update(await self._request(store, batch, demand))
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
        self, store: Store, task_ids: list[str], demand: Demand
    ) -> dict[str, AbortReceipt]:
        """Ask for the abort of at most 1,000 tasks, in one statement.

        What fails between two of these leaves the tasks of the first ones asked; to ask
        them again does no harm.
        """
        rows = await self._finished_elsewhere(store, task_ids)
        asked = [task_id for task_id in task_ids if task_id not in rows]
        new = await store.request(
            asked, demand.reason, demand.requested_by, demand.grace
        )
        old = [task_id for task_id in asked if task_id not in new]
        hastened: dict[str, AbortRequest] = {}
        if old and demand.grace is not None:
            hastened = await store.hasten(old, demand.grace)
        await self._hint(store, [*new, *hastened])
        if unknown := [task_id for task_id in old if task_id not in hastened]:
            rows |= await store.states(unknown)
        return {
            task_id: _receipt(
                task_id, new.get(task_id), hastened.get(task_id), rows.get(task_id)
            )
            for task_id in task_ids
        }

    async def _finished_elsewhere(
        self, store: Store, task_ids: list[str]
    ) -> dict[str, TaskRow]:
        """Return the rows of those tasks that have ended by Celery's own backend.

        None if the results are in PostgreSQL, where the request itself finds out.
        """
        if store.has_results:
            return {}

        def read() -> dict[str, TaskRow]:
            read = self._connections.backend.get_task_meta
            found = ((task_id, read(task_id)["status"]) for task_id in task_ids)
            return {
                task_id: TaskRow(task_id=task_id, state=state)
                for task_id, state in found
                if state in states.READY_STATES
            }

        return await to_thread.run_sync(read)

    async def _hint(self, store: Store, task_ids: list[str]) -> None:
        if not task_ids:
            return
        try:
            await store.hint_workers(task_ids)
        except StoreError as error:
            # The request is committed; the worker's poll will find it.
            logger.debug("aioabort client: no notification was sent: %s", error)


def _receipt(
    task_id: str,
    new: AbortRequest | None,
    hastened: AbortRequest | None,
    row: TaskRow | None,
) -> AbortReceipt:
    if new is not None:
        return AbortReceipt(task_id=task_id, answer="requested", request=new)
    request = hastened or (row.request if row is not None else None)
    if row is not None and row.state in states.READY_STATES:
        return AbortReceipt(
            task_id=task_id, answer="finished", state=row.state, request=request
        )
    return AbortReceipt(task_id=task_id, answer="requested_before", request=request)
