"""What PostgreSQL is to be told of the runs of this process: kept until it is told."""

import asyncio
import logging
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Never

from anyio import sleep

from aioabort import telemetry
from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.postgres.store import Store
from aioabort.records import AbortRequest, Outcome
from aioabort.worker.run import Run

#: A hint that is not sent costs its receiver one poll interval, and nothing else.
MOST_HINTS = 5_000

#: Seconds between two reports: at most 100 NOTIFY a second, however many tasks end.
GAP = 0.01

logger: logging.Logger = logging.getLogger(__name__)

RequestKey = tuple[str, datetime]


class Reports:
    """Requests that were seen, how they ended, and the tasks that are done."""

    def __init__(self) -> None:
        self._seen: dict[RequestKey, tuple[AbortRequest, Run]] = {}
        self._outcomes: dict[RequestKey, tuple[AbortRequest, Outcome, float]] = {}
        self._done: dict[str, None] = {}
        self._lost: dict[str, None] = {}
        self._waiting = asyncio.Event()

    def seen(self, run: Run) -> None:
        """Have it recorded that the task noticed its request."""
        if run.request is not None:
            self._seen[_key(run.request)] = (run.request, run)
            self._waiting.set()

    def outcome(self, request: AbortRequest, outcome: Outcome, moment: float) -> None:
        """Have it recorded how the task ended, at *moment* of the monotonic clock."""
        self._outcomes[_key(request)] = (request, outcome, moment)
        self._waiting.set()

    def lost(self, task_id: str) -> None:
        """Have those who await the task not wait for the result, which Celery lost."""
        self._lost[task_id] = None
        self._waiting.set()

    def done(self, task_id: str) -> None:
        """Have those told who await the task."""
        if len(self._done) < MOST_HINTS:
            self._done[task_id] = None
            self._waiting.set()

    async def keep_sending(self, store: Store) -> Never:
        """Send what there is, whenever there is something."""
        while True:
            await self.send(store)
            # The first is sent at once; those that follow it closely go together.
            await sleep(GAP)
            await self._waiting.wait()

    async def send(self, store: Store) -> None:
        """Send all that there is; what fails for want of a connection is kept."""
        self._waiting.clear()
        try:
            await self._send_seen(store)
            await self._send_lost(store)
            await self._send_outcomes(store)
        except StoreUnavailable:
            raise
        except StoreError as error:
            # To try again would not help, and must not end the watching.
            logger.warning("aioabort worker: cannot record requests: %s", error)
            self._seen.clear()
            self._outcomes.clear()
            self._lost.clear()
        await self._send_done(store)

    async def _send_seen(self, store: Store) -> None:
        if seen := self._seen.copy():
            now = time.monotonic()
            recorded = await store.record_seen(
                [request for request, _ in seen.values()],
                [now - run.seen_at for _, run in seen.values()],
                next(run.node for _, run in seen.values()),
            )
            telemetry.seen(recorded)
            _discard(self._seen, seen)
            # Who holds the receipt of a request may wait for this.
            self._done.update(dict.fromkeys(task_id for task_id, _ in seen))

    async def _send_outcomes(self, store: Store) -> None:
        if outcomes := self._outcomes.copy():
            now = time.monotonic()
            recorded = await store.record_outcomes(
                [request for request, _, _ in outcomes.values()],
                [outcome for _, outcome, _ in outcomes.values()],
                [now - moment for _, _, moment in outcomes.values()],
            )
            telemetry.stopped(recorded)
            _discard(self._outcomes, outcomes)
            # A task that stores no result is known to have ended by its outcome only.
            self._done.update(dict.fromkeys(task_id for task_id, _ in outcomes))

    async def _send_lost(self, store: Store) -> None:
        if lost := self._lost.copy():
            await store.give_up_results([*lost])
            _discard(self._lost, lost)

    async def _send_done(self, store: Store) -> None:
        if done := self._done.copy():
            try:
                await store.hint_clients(done)
            except StoreUnavailable:
                raise
            except StoreError as error:
                # The queue of notifications is full: those who wait will poll.
                logger.debug("aioabort worker: no notification was sent: %s", error)
            _discard(self._done, done)


def _key(request: AbortRequest) -> RequestKey:
    return request.task_id, request.requested_at


def _discard(items: dict[Any, Any], sent: Iterable[Any]) -> None:
    for key in sent:
        items.pop(key, None)
