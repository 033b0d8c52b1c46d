"""Requesting aborts: of given tasks, or of those that meet criteria."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

from celery import Celery, states

from aioabort.client.connections import Connections
from aioabort.client.criteria import find_unfinished
from aioabort.client.targets import AbortTarget, abort_targets
from aioabort.client.validation import check_grace, check_text
from aioabort.exceptions import InvalidRequest, StoreError
from aioabort.halving import in_parts
from aioabort.models import AbortFollower, AbortReceipt, AbortRequest, Outcome, TaskRow
from aioabort.poller import BATCH_SIZE

#: A task, and why its abort was not requested.
Failure = tuple[str, StoreError]

logger: logging.Logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AbortOptions:
    """What an abort request says; raises InvalidRequest for what cannot be stored."""

    reason: str | None = None
    requested_by: str | None = None
    grace: float | None = None

    def __post_init__(self) -> None:
        check_text("reason", self.reason)
        check_text("requested_by", self.requested_by)
        check_grace(self.grace)


class AbortRequests:
    """Stores the abort requests of a client, and notifies the workers."""

    def __init__(self, connections: Connections, follower: AbortFollower) -> None:
        self._connections = connections
        self._follower = follower

    async def request(
        self, targets: object, options: AbortOptions
    ) -> list[AbortReceipt]:
        """Request the abort of *targets* and of all tasks before them.

        Returns a receipt for each target, and for each member of a group.
        """
        return await self._request(await abort_targets(targets), options)

    async def request_where(
        self, app: Celery, criteria: dict[str, Any], options: AbortOptions
    ) -> list[AbortReceipt]:
        """Request the abort of all unfinished tasks that meet *criteria*.

        Raises ResultsElsewhere if the results are not in PostgreSQL,
        ImproperlyConfigured if *app* does not have Celery store the columns that
        *criteria* need, and StoreError if Celery's table lacks these columns.
        """
        receipts: list[AbortReceipt] = []
        async for task_ids in find_unfinished(app, self._connections.store, criteria):
            targets = [AbortTarget(task_id) for task_id in task_ids]
            receipts += await self._request(targets, options)
        return receipts

    async def _request(
        self, targets: list[AbortTarget], options: AbortOptions
    ) -> list[AbortReceipt]:
        # Thousands of targets may share one of these tuples.
        before = {id(target.before): target.before for target in targets}
        task_ids = dict.fromkeys(
            [task_id for task_ids in before.values() for task_id in task_ids]
            + [target.task_id for target in targets]
        )
        receipts: dict[str, AbortReceipt] = {}
        remaining = iter(task_ids)
        failed: list[Failure] = []
        while batch := list(islice(remaining, BATCH_SIZE)):
            receipts.update(await self._request_batch(batch, options, failed))
        if failed:
            raise _error_of(failed, len(task_ids))
        receipts_before = {
            key: tuple(receipts[task_id] for task_id in task_ids)
            for key, task_ids in before.items()
        }
        return [
            replace(receipts[target.task_id], before=receipts_before[id(target.before)])
            if target.before
            else receipts[target.task_id]
            for target in targets
        ]

    async def _request_batch(
        self, task_ids: list[str], options: AbortOptions, failed: list[Failure]
    ) -> dict[str, AbortReceipt]:
        """Request the abort of at most 1,000 tasks, in one statement.

        Adds to *failed* the tasks that PostgreSQL refuses, or whose rows are locked.
        If a later batch fails, the requests of this one stay; repeating them does no
        harm.
        """
        store = self._connections.store
        known, is_read = await self._read_elsewhere(task_ids)
        rows = {key: row for key, row in known.items() if _is_finished(row)}
        asked = [task_id for task_id in task_ids if task_id not in rows]
        settled = _settled(known.values())
        new, failures = await self._store_requests(asked, options, settled)
        if is_read:
            # Before the workers are notified: a task that sees its request and ends
            # meanwhile would look as if it had ended before.
            await self._settle_ended(new)
        failed += failures
        left_out = {task_id for task_id, _ in failures}
        task_ids = [task_id for task_id in task_ids if task_id not in left_out]
        old = [
            task_id
            for task_id in asked
            if task_id not in new and task_id not in left_out
        ]
        hastened: dict[str, AbortRequest] = {}
        if old and options.grace is not None:
            hastened = await store.shorten_grace(old, options.grace)
        self._connections.notifier.notify([*new, *hastened])
        again: list[str] = []
        if unknown := [task_id for task_id in old if task_id not in hastened]:
            rows |= await store.read_states(unknown)
            await self._refuse_groups(
                [rows[task_id] for task_id in unknown if task_id in rows]
            )
            if not store.has_results:
                # Settled since the results were read: these tasks have ended since.
                found = [rows[task_id] for task_id in unknown if task_id in rows]
                again = [request.task_id for request in _settled(found)]
        receipts = {
            task_id: self._receipt(
                task_id, new.get(task_id), hastened.get(task_id), rows.get(task_id)
            )
            for task_id in task_ids
        }
        if again:
            receipts |= await self._request_batch(again, options, failed)
        return receipts

    async def _store_requests(
        self, task_ids: list[str], options: AbortOptions, settled: list[AbortRequest]
    ) -> tuple[dict[str, AbortRequest], list[Failure]]:
        """Return the new requests, and the tasks for which PostgreSQL stored none.

        *settled*: the requests that new ones may replace, with results elsewhere.
        """
        store = self._connections.store
        facts = (options.reason, options.requested_by, options.grace, settled)
        if len(task_ids) == 1:
            return await store.request_aborts(task_ids, *facts), []
        timing = self._connections.settings.timing
        hasty = store.with_patience(timing.batch_patience)
        answers = await in_parts(
            task_ids,
            lambda part: hasty.request_aborts(part, *facts),
            while_busy=timing.busy_timeout,
        )
        new = {
            task_id: request
            for part in answers.results
            for task_id, request in part.items()
        }
        return new, answers.failed

    async def _refuse_groups(self, rows: Iterable[TaskRow]) -> None:
        """Raise InvalidRequest if a saved group is why tasks got no request."""
        ids = [row.task_id for row in rows if row.state is None and row.request is None]
        for group_id in ids and await self._connections.store.find_groups(ids):
            raise InvalidRequest(
                f"{group_id!r} is the id of a saved group, not of a task: abort "
                f"GroupResult.restore({group_id!r}, app=app)"
            )

    async def _read_elsewhere(
        self, task_ids: list[str]
    ) -> tuple[dict[str, TaskRow], bool]:
        """Return the rows of the tasks, and whether Celery's backend was read for them.

        Empty if the results are in PostgreSQL: there, the statement that stores the
        requests leaves out the tasks that have ended. If the backend cannot be read, the
        rows have no states: the tasks may run while it is away.
        """
        store = self._connections.store
        if store.has_results:
            return {}, False
        try:
            return await self._connections.results.read_snapshots(task_ids), True
        except StoreError as error:
            # If PostgreSQL is what is away or refuses, the next statement raises that.
            rows = await store.read_snapshots(task_ids)
            logger.warning(
                "aioabort client: %d tasks are aborted that may have ended: %s",
                len(task_ids),
                error,
            )
            return rows, False

    async def _settle_ended(self, new: dict[str, AbortRequest]) -> None:
        """Settle the requests of tasks that have ended since their results were read.

        The worker of such a task may have looked for a request before there was one. It
        finds those of the tasks that end later.
        """
        ended: dict[str, TaskRow] = {}
        if new:
            # The requests are stored, even if the results cannot be read again.
            with suppress(StoreError):
                rows = await self._connections.results.read_snapshots([*new])
                ended = {
                    key: row
                    for key, row in rows.items()
                    if _is_finished(row) and row.request == new[key]
                }
        if ended:
            store = self._connections.store
            await store.record_outcomes(
                [new[task_id] for task_id in ended],
                [_outcome_of(row) for row in ended.values()],
                [0.0] * len(ended),
            )
            await store.notify_clients(ended)

    def _receipt(
        self,
        task_id: str,
        new: AbortRequest | None,
        hastened: AbortRequest | None,
        row: TaskRow | None,
    ) -> AbortReceipt:
        state = row.state if row is not None else None
        is_finished = row is not None and _is_finished(row)
        answer: Literal["requested", "requested_before", "finished"]
        if new is not None:
            answer = "requested"
        elif is_finished:
            answer = "finished"
        else:
            answer = "requested_before"
        return AbortReceipt(
            task_id=task_id,
            answer=answer,
            state=state if is_finished else None,
            request=new or hastened or (row.request if row is not None else None),
            follower=self._follower,
        )


def _is_finished(row: TaskRow) -> bool:
    return row.state in states.READY_STATES


def _settled(rows: Iterable[TaskRow]) -> list[AbortRequest]:
    """Return the requests in *rows* that are settled."""
    requests = [row.request for row in rows if row.request is not None]
    return [request for request in requests if not request.is_pending]


def _outcome_of(row: TaskRow) -> Outcome:
    """Return the outcome of a task that has ended without seeing its request."""
    return "aborted" if row.state == states.REVOKED else "too_late"


def _error_of(failed: list[Failure], asked: int) -> StoreError:
    """Return the error of a call that could not request the abort of some tasks."""
    task_id, error = failed[0]
    if asked == 1:
        return error
    others = f" and {len(failed) - 1} others" if len(failed) > 1 else ""
    problem = type(error)(
        f"The abort of {task_id!r}{others} was not requested; that of all other tasks "
        f"was: {error}"
    )
    problem.__cause__ = error.__cause__
    return problem
