"""Outcomes that the main process records, as no child can.

A child that was killed records nothing, and a task that is revoked or expires before its
body has no child. The main process may fork at any time, so it keeps neither a thread
nor a connection: each lives as long as there is something to record. During an outage
only the thread lives, asleep and without an open file.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from celery import Celery, states
from celery.app.task import Context
from celery.exceptions import ImproperlyConfigured, TaskRevokedError

from aioabort.concurrency.fork_gate import run_between_forks
from aioabort.concurrency.loop_thread import Event, RLock, sleep, start_thread
from aioabort.exceptions import StoreBusy, StoreError, StoreUnavailable
from aioabort.halving import in_parts
from aioabort.models import AbortRequest, Outcome
from aioabort.orm import with_orm_tables
from aioabort.postgres.connection import connect
from aioabort.postgres.request_store import RequestStore, open_request_store
from aioabort.reconnect import Backoff, may_pass
from aioabort.settings import read_settings
from aioabort.telemetry import instruments
from aioabort.timing import Timing
from aioabort.worker.announcements import announce_outcome
from aioabort.worker.final_state import restore_revoked, store_revoked
from aioabort.worker.handover import UnrecordedEnd, handover
from aioabort.worker.workflow import end_what_follows, ids_of_followers

#: Tasks that are kept during an outage of PostgreSQL; the oldest are dropped.
MOST_ENDED = 10_000

#: ``failed`` counts as ``too_late`` if the task had not seen its abort request.
KnownOutcome = Literal["aborted", "failed", "too_late", "killed"]

logger: logging.Logger = logging.getLogger(__name__)

# Imported here, not by the thread: a child that is forked in the middle of an import
# would wait for ever for the import's lock.
instruments()


@dataclass(frozen=True, slots=True)
class EndedTask:
    """A task that has ended, and its outcome as far as the main process knows."""

    task: Any
    context: Context
    outcome: KnownOutcome
    #: The child may have stored a result before it was killed. Only if there is one,
    #: the outcome is recorded, and the result decides which.
    is_stored: bool = False
    #: The task was revoked, so its retry is discarded. RETRY is not its final state.
    is_discarded_retry: bool = False

    @property
    def app(self) -> Celery:
        """The app that the task belongs to."""
        app: Celery = self.task.app
        return app


@dataclass(frozen=True, slots=True)
class HandedOver:
    """An end that a child could not record before it exited."""

    app: Celery
    end: UnrecordedEnd


class Recorder:
    """Records outcomes in a thread that ends when nothing is left to record."""

    def __init__(self) -> None:
        self._ended: Final[deque[EndedTask | HandedOver]] = deque(maxlen=MOST_ENDED)
        self._lock: Final = RLock()
        #: Set at the end of the thread; None if there is no thread.
        self._is_idle: Event | None = None
        self.timing: Timing = Timing()

    def record(self, ended: EndedTask | HandedOver) -> None:
        """Record the outcome soon, and notify the waiters; returns at once."""
        with self._lock:
            self._ended.append(ended)
            if self._is_idle is None:
                # Not read by the thread: a fork could copy locks of Celery's that it holds.
                self.timing = _timing_of(ended.app)
                self._is_idle = start_thread(self._record_all, "aioabort-recorder")

    def wait(self, timeout: float) -> bool:
        """Wait until all is recorded; return whether it was within *timeout* seconds."""
        is_idle = self._is_idle
        return is_idle is None or is_idle.wait(timeout)

    def _record_all(self) -> None:
        timing = self.timing
        backoff = Backoff(timing.record_retry_first, timing.record_retry_longest)
        while tasks := self._take_tasks():
            try:
                _record_now(tasks)
            except StoreUnavailable as error:
                if not backoff.tries:
                    logger.warning(
                        "aioabort worker: the outcomes of %d tasks are not recorded yet; "
                        "trying again: %s",
                        len(tasks),
                        error,
                    )
                with self._lock:
                    self._ended.extend(tasks)
                sleep(backoff.next_delay())
            else:
                backoff.reset()

    def _take_tasks(self) -> list[EndedTask | HandedOver]:
        """Return the tasks of one app. If there are none, the thread has to end."""
        with self._lock:
            tasks = [ended for ended in self._ended if ended.app is self._ended[0].app]
            for ended in tasks:
                self._ended.remove(ended)
            if not tasks:
                self._is_idle = None
            return tasks


recorder: Final = Recorder()


def record_outcome(ended: EndedTask) -> None:
    """Record the outcome soon, and notify the waiters; returns at once."""
    recorder.record(ended)


def record_handed_over(app: Celery) -> None:
    """Record soon what children of a worker of *app* have left; returns at once."""
    for end in handover.read():
        recorder.record(HandedOver(app, end))


def _record_now(tasks: Sequence[EndedTask | HandedOver]) -> None:
    """Record *tasks*, all of one app; raises StoreUnavailable if that may succeed later."""
    try:
        run_between_forks(_record(tasks[0].app, tasks))
    except ImproperlyConfigured:
        pass  # The child that ran the task has logged it.
    except StoreUnavailable:
        raise
    except StoreError as error:
        logger.warning(
            "aioabort worker: the outcomes of %d tasks cannot be recorded: %s",
            len(tasks),
            error,
        )
    except Exception:
        logger.exception(
            "aioabort worker: the outcomes of %d tasks cannot be recorded", len(tasks)
        )


async def _record(app: Celery, all_tasks: Sequence[EndedTask | HandedOver]) -> None:
    tasks = [ended for ended in all_tasks if isinstance(ended, EndedTask)]
    left = [each.end for each in all_tasks if isinstance(each, HandedOver)]
    settings = await with_orm_tables(app, read_settings(app))
    async with connect(settings.dsn, settings.timing) as link:
        store = await open_request_store(link, settings)
        store = store.with_patience(settings.timing.batch_patience)
        await link.limit_lock_waits()
        await _record_left(store, left)
        await _record_stored(store, [ended for ended in tasks if ended.is_stored])
        by_id = {
            _id(ended): ended
            for ended in tasks
            if not (ended.is_stored or ended.is_discarded_retry)
        }
        outcomes: dict[str, Outcome] = {id_: by_id[id_].outcome for id_ in by_id}
        settled, delayed_by = await _settle(store, outcomes)
        for request in settled:
            # Blocks a loop that has nothing else to do.
            _end_workflow(by_id[request.task_id], request)
        if settled:
            await store.reset_to_aborted([request.task_id for request in settled])
        if followers := _followers_of(by_id.values()):
            await store.settle_requests(followers)
        await store.notify_clients([*outcomes, *followers])
        for ended in tasks:
            if ended.is_discarded_retry:
                await _record_discarded_retry(store, ended)
        if delayed_by is not None:
            raise delayed_by


async def _record_left(store: RequestStore, ends: Sequence[UnrecordedEnd]) -> None:
    """Record what children have left: the outcomes, and the checks before them."""
    if not ends:
        return
    now = time.monotonic()
    known = [(end.request, end) for end in ends if end.request is not None]
    for request, end in known:
        if end.seen_at is not None:
            await store.record_seen([request], [now - end.seen_at], end.seen_by)
    await store.record_outcomes(
        [request for request, _ in known],
        [end.outcome for _, end in known],
        [now - end.ended_at for _, end in known],
    )
    unknown: dict[str, Outcome] = {
        end.task_id: end.outcome for end in ends if end.request is None
    }
    await store.settle_requests(unknown)
    await store.notify_clients([end.task_id for end in ends])


async def _settle(
    store: RequestStore, outcomes: dict[str, Outcome]
) -> tuple[list[AbortRequest], StoreBusy | None]:
    """Return the requests that this settles, and why others cannot be settled yet."""
    answers = await in_parts(
        [*outcomes.items()],
        lambda part: store.settle_requests(dict(part)),
        while_busy=store.patience,
    )
    delayed_by: StoreBusy | None = None
    for (task_id, _), error in answers.failed:
        if isinstance(error, StoreBusy):
            delayed_by = error
        else:
            logger.warning(
                "aioabort worker: the outcome of task %s cannot be recorded: %s",
                task_id,
                error,
            )
    return [request for part in answers.results for request in part], delayed_by


async def _record_stored(store: RequestStore, tasks: Sequence[EndedTask]) -> None:
    """Settle the pending abort requests of the tasks that have a final state.

    Such a task has no run to come. Without a final state, the task may be about to be
    retried or redelivered.
    """
    outcomes: dict[str, Outcome] = {_id(ended): ended.outcome for ended in tasks}
    if not outcomes:
        return
    rows = await store.read_states([*outcomes])
    settled, delayed_by = await _settle(
        store,
        {
            task_id: outcomes[task_id]
            for task_id, row in rows.items()
            if row.state in states.READY_STATES
        },
    )
    await store.notify_clients([request.task_id for request in settled])
    if delayed_by is not None:
        raise delayed_by


async def _record_discarded_retry(store: RequestStore, ended: EndedTask) -> None:
    """Restore REVOKED if RETRY has replaced it, and settle the abort request.

    In this order: a client whose request is stored after that reads the result again.
    """
    _restore_revoked(ended)
    task_id = _id(ended)
    for request in await store.settle_requests({task_id: ended.outcome}):
        announce_outcome(ended.task, request, ended.outcome)
    await store.notify_clients([task_id])


def _restore_revoked(ended: EndedTask) -> None:
    """Store REVOKED if RETRY is stored; raises StoreUnavailable if that may succeed later."""
    try:
        restore_revoked(ended.task.backend, ended.context, TaskRevokedError("revoked"))
    except Exception as error:
        if may_pass(error):
            raise StoreUnavailable(
                f"Celery's result backend is away: {error}"
            ) from error
        logger.exception(
            "aioabort worker: the final state of task %s may be RETRY for ever",
            _id(ended),
        )


def _id(ended: EndedTask) -> str:
    return ended.context.id or ""


def _followers_of(tasks: Iterable[EndedTask]) -> dict[str, Outcome]:
    """Return the tasks that do not run since *tasks* have ended, with their outcomes."""
    return {
        task_id: "too_late" if ended.outcome in {"failed", "too_late"} else "aborted"
        for ended in tasks
        for task_id in ids_of_followers(ended.context)
    }


def _end_workflow(ended: EndedTask, request: AbortRequest) -> None:
    """Do what a child does after an abort."""
    if request.outcome is not None:
        announce_outcome(ended.task, request, request.outcome)
    if ended.outcome == "failed":
        return
    # Celery has stored REVOKED, but it does not end what follows a revoked task.
    try:
        backend, error = ended.task.backend, request.error()
        end_what_follows(
            backend,
            ended.context,
            error,
            lambda follower: store_revoked(backend, follower, error),
        )
    except Exception:
        logger.exception(
            "aioabort worker: task %s was aborted, but the tasks that follow it in its "
            "workflow could not be ended",
            request.task_id,
        )


def _timing_of(app: Celery) -> Timing:
    try:
        return read_settings(app).timing
    except ImproperlyConfigured:
        return Timing()


def wait_at_shutdown() -> None:
    """Give what is left to record a moment before the worker ends."""
    if not recorder.wait(recorder.timing.record_stop_timeout):
        logger.warning("aioabort worker: stopped before all outcomes were recorded")
