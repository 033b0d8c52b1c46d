"""What the runs of this process have PostgreSQL record, kept until it is recorded."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from typing import Any, Final, Never, TypeVar

from aioabort.batching import BatchSender
from aioabort.exceptions import StoreBusy, StoreError, StoreUnavailable
from aioabort.halving import failures
from aioabort.models import AbortRequest, Outcome
from aioabort.postgres.request_store import RequestStore
from aioabort.reconnect import Backoff
from aioabort.telemetry import instruments
from aioabort.timing import Timing
from aioabort.worker.handover import UnrecordedEnd
from aioabort.worker.run import Run

#: A waiter whose notification is dropped finds the end at its next poll.
MOST_NOTIFICATIONS = 5_000

logger: logging.Logger = logging.getLogger(__name__)

#: Returns a context manager that notes whether the named statements succeed.
Proving = Callable[[str], AbstractContextManager[None]]

RequestKey = tuple[str, datetime]
Seen = tuple[AbortRequest, Run]
Ended = tuple[AbortRequest, Outcome, float]

K = TypeVar("K")
V = TypeVar("V")


class OutcomeReporter:
    """Records which abort requests were seen and their outcomes; notifies clients.

    Batches are ``timing.report_gap`` seconds apart, which bounds the number of NOTIFY a second however
    many tasks end.
    """

    def __init__(self, timing: Timing) -> None:
        self._patience: Final = timing.batch_patience
        self._seen: dict[RequestKey, Seen] = {}
        self._outcomes: dict[RequestKey, Ended] = {}
        self._finished: dict[str, None] = {}
        self._lost_results: dict[str, None] = {}
        self._followers: dict[str, Outcome] = {}
        self._sender: Final = BatchSender(timing.report_gap)
        self._pauses: Final = Backoff(
            timing.record_retry_first, timing.report_retry_longest, jitter=True
        )
        #: Why the latest ``send()`` left something to record.
        self._delayed_by: StoreBusy | None = None

    def add_seen(self, run: Run) -> None:
        """Record that the task saw its abort request."""
        if run.request is not None:
            self._seen[_key(run.request)] = (run.request, run)
            self._sender.wake()

    def add_outcome(
        self, request: AbortRequest, outcome: Outcome, moment: float
    ) -> None:
        """Record how the task ended, at *moment* of the monotonic clock."""
        self._outcomes[_key(request)] = (request, outcome, moment)
        self._sender.wake()

    def add_lost_result(self, task_id: str) -> None:
        """Record that Celery stores no result: waiters must not wait for it."""
        self._lost_results[task_id] = None
        self._sender.wake()

    def add_followers(self, task_ids: Iterable[str], outcome: Outcome) -> None:
        """Record the end of tasks that do not run; most of them have no request."""
        for task_id in task_ids:
            self._followers[task_id] = outcome
            self.add_finished(task_id)
        if self._followers:
            self._sender.wake()

    def add_finished(self, task_id: str) -> None:
        """Notify the waiters of the task."""
        if len(self._finished) < MOST_NOTIFICATIONS:
            self._finished[task_id] = None
            self._sender.wake()

    def unrecorded(self, runs: Iterable[Run]) -> list[UnrecordedEnd]:
        """Return what is left to record, including the ends of *runs*."""
        ends = [
            UnrecordedEnd(task_id=task_id, outcome=outcome, ended_at=time.monotonic())
            for task_id, outcome in self._followers.items()
        ]
        outcomes = list(self._outcomes.values())
        for run in runs:
            if run.request is not None and run.outcome is not None:
                outcomes.append((run.request, run.outcome, run.ended_at))
            elif run.outcome is not None:
                ends.append(
                    UnrecordedEnd(
                        task_id=run.task_id, outcome=run.outcome, ended_at=run.ended_at
                    )
                )
        return ends + [self._unrecorded(*each) for each in outcomes]

    def _unrecorded(
        self, request: AbortRequest, outcome: Outcome, moment: float
    ) -> UnrecordedEnd:
        run = self._seen[_key(request)][1] if _key(request) in self._seen else None
        return UnrecordedEnd(
            task_id=request.task_id,
            outcome=outcome,
            ended_at=moment,
            requested_at=request.requested_at.isoformat(),
            seen_at=run.seen_at if run else None,
            seen_by=run.node if run else "",
        )

    async def run(self, store: RequestStore, proving: Proving) -> Never:
        """Send what was added, in batches, each in *proving*, for ever."""

        async def send() -> None:
            with proving("reports"):
                await self.send(store)

        await self._sender.run(send)

    async def send(self, store: RequestStore) -> None:
        """Send everything; what PostgreSQL cannot record now is kept.

        Raises StoreUnavailable if the connection is lost.
        """
        hasty = store.with_patience(self._patience)
        self._delayed_by = None
        await self._record(self._seen, partial(self._send_seen, hasty))
        await self._record(self._lost_results, partial(self._send_lost, hasty))
        # A task may have seen its request and ended since its process recorded what was
        # seen. Without that, the outcome would say that it saw nothing.
        await self._record(
            self._outcomes, partial(self._send_outcomes, hasty), after=self._seen
        )
        await self._record(self._followers, partial(self._send_followers, hasty))
        await self._send_finished(hasty)
        self._plan_retry()

    async def _record(
        self,
        waiting: dict[K, V],
        send: Callable[[Mapping[K, V]], Awaitable[None]],
        *,
        after: Container[K] = (),
    ) -> None:
        """Call *send* with what is *waiting*, and remove what was recorded or refused.

        What is in *after* has to wait until it is not. One row that is locked or refused does not keep the others from being recorded.
        """
        items = [(key, value) for key, value in waiting.items() if key not in after]
        if not items:
            return

        async def send_part(part: Sequence[tuple[K, V]]) -> None:
            await send(dict(part))
            for key, _ in part:
                waiting.pop(key, None)

        failed = await failures(items, send_part, while_busy=self._patience)
        refused: StoreError | None = None
        for (key, _), error in failed:
            if isinstance(error, StoreBusy):
                self._delayed_by = error
            else:
                # Trying again would not help, and raising the error would close the
                # connection that the runs are watched over.
                refused = error
                waiting.pop(key, None)
        if refused is not None:
            logger.warning("aioabort worker: cannot record abort outcomes: %s", refused)

    def _plan_retry(self) -> None:
        """Send again soon what was delayed by a lock, say."""
        if self._delayed_by is None:
            self._pauses.reset()
            return
        if not self._pauses.tries:
            logger.warning(
                "aioabort worker: abort outcomes are not recorded yet; trying again: %s",
                self._delayed_by,
            )
        loop = asyncio.get_running_loop()
        loop.call_later(self._pauses.next_delay(), self._sender.wake)

    async def _send_seen(self, store: RequestStore, seen: Mapping[Any, Seen]) -> None:
        now = time.monotonic()
        recorded = await store.record_seen(
            [request for request, _ in seen.values()],
            [now - run.seen_at for _, run in seen.values()],
            next((run.node for _, run in seen.values()), ""),
        )
        instruments().seen(recorded)
        # The holder of a receipt may wait for this.
        self._finished.update(dict.fromkeys(task_id for task_id, _ in seen))

    async def _send_outcomes(
        self, store: RequestStore, outcomes: Mapping[Any, Ended]
    ) -> None:
        now = time.monotonic()
        recorded = await store.record_outcomes(
            [request for request, _, _ in outcomes.values()],
            [outcome for _, outcome, _ in outcomes.values()],
            [now - moment for _, _, moment in outcomes.values()],
        )
        instruments().stopped(recorded)
        # If a task stores no result, only its outcome shows that it has ended.
        self._finished.update(dict.fromkeys(task_id for task_id, _ in outcomes))

    async def _send_followers(
        self, store: RequestStore, followers: Mapping[str, Outcome]
    ) -> None:
        await store.settle_requests(followers)

    async def _send_lost(self, store: RequestStore, lost: Mapping[str, None]) -> None:
        await store.reset_to_aborted([*lost])

    async def _send_finished(self, store: RequestStore) -> None:
        if finished := self._finished.copy():
            try:
                await store.notify_clients(finished)
            except StoreBusy as error:
                self._delayed_by = error
                return
            except StoreUnavailable:
                raise
            except StoreError as error:
                # The queue of notifications is full: the waiters poll.
                logger.debug("aioabort worker: no notification was sent: %s", error)
            for task_id in finished:
                self._finished.pop(task_id, None)


def _key(request: AbortRequest) -> RequestKey:
    return request.task_id, request.requested_at
