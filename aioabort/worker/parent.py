"""What the worker's main process records: the ends that a task's own process cannot.

A child that was killed reports nothing, and what Celery revokes or lets expire before
its body has no child. The main process forks children at any time, so it keeps neither
a thread nor a connection: each lives as long as there is something to record. While
PostgreSQL is away there is the thread only, which sleeps and holds nothing open.
"""

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from celery import Celery, signals, states
from celery.app.task import Context
from celery.exceptions import ImproperlyConfigured

from aioabort import threads
from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.postgres.connection import connect
from aioabort.postgres.store import Store, open_store
from aioabort.records import AbortRequest, Outcome
from aioabort.settings import read_settings
from aioabort.signals import task_aborted
from aioabort.worker.forks import run_between_forks
from aioabort.worker.workflow import end_what_follows

#: How long the end of the worker may be held up by what is still to be recorded.
STOP_TIMEOUT = 0.2

#: Ends that are kept while PostgreSQL is away: the latest.
MOST_ENDS = 10_000

#: Seconds between two tries: doubled after each, up to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0

#: ``failed`` counts as ``too_late`` if the task had not seen its request.
KnownOutcome = Literal["aborted", "failed", "too_late", "killed"]

logger: logging.Logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class End:
    """A task that has ended, and how, as far as the main process knows."""

    task: Any
    context: Context
    outcome: KnownOutcome
    #: Its process has done all but record it, if there is a result: that tells the
    #: outcome.
    is_stored: bool = False

    @property
    def app(self) -> Celery:
        """The app that the task belongs to."""
        app: Celery = self.task.app
        return app


_ends: deque[End] = deque(maxlen=MOST_ENDS)
_recording: threads.Event | None = None
_lock = threads.RLock()


def record_end(end: End) -> None:
    """Have *end* recorded, and those told who await the task; returns at once."""
    global _recording  # noqa: PLW0603
    with _lock:
        _ends.append(end)
        if _recording is None:
            _recording = threads.start(_record_all, "aioabort-ends")


def _record_all() -> None:
    pause = FIRST_PAUSE
    while ends := _next_ends():
        try:
            _record_now(ends)
        except StoreUnavailable as error:
            if pause == FIRST_PAUSE:
                logger.warning(
                    "aioabort worker: how %d tasks ended is not recorded yet: %s",
                    len(ends),
                    error,
                )
            with _lock:
                _ends.extend(ends)
            threads.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        else:
            pause = FIRST_PAUSE


def _record_now(ends: Sequence[End]) -> None:
    """Record *ends*, of one app; raises StoreUnavailable if that may succeed later."""
    try:
        run_between_forks(_record(ends[0].app, ends))
    except ImproperlyConfigured:
        pass  # told by whoever runs a task
    except StoreUnavailable:
        raise
    except StoreError as error:
        logger.warning(
            "aioabort worker: how %d tasks ended is not recorded: %s", len(ends), error
        )
    except Exception:
        logger.exception("aioabort worker: how tasks ended is not recorded")


def _next_ends() -> list[End]:
    """Return what is to be recorded for one app; if that is nothing, the thread ends."""
    global _recording  # noqa: PLW0603
    with _lock:
        ends = [end for end in _ends if end.app is _ends[0].app]
        for end in ends:
            _ends.remove(end)
        if not ends:
            _recording = None
        return ends


async def _record(app: Celery, ends: Sequence[End]) -> None:
    settings = read_settings(app)
    async with connect(settings.dsn) as link:
        store = await open_store(link, settings)
        await _record_stored(store, [end for end in ends if end.is_stored])
        by_id = {end.context.id or "": end for end in ends if not end.is_stored}
        outcomes: dict[str, Outcome] = {id_: end.outcome for id_, end in by_id.items()}
        ended = list(outcomes)
        for request in await store.settle(outcomes):
            # Blocks a loop that has nothing else to do.
            ended += _end_workflow(by_id[request.task_id], request)
        await store.hint_clients(ended)


async def _record_stored(store: Store, ends: Sequence[End]) -> None:
    """Settle what is pending of tasks that have a result: no run is to come for it.

    Without a result, the task may be about to be tried or to be delivered again.
    """
    outcomes: dict[str, Outcome] = {end.context.id or "": end.outcome for end in ends}
    if not outcomes:
        return
    rows = await store.states([*outcomes])
    settled = await store.settle(
        {
            task_id: outcomes[task_id]
            for task_id, row in rows.items()
            if row.state in states.READY_STATES
        }
    )
    await store.hint_clients([request.task_id for request in settled])


def _end_workflow(end: End, request: AbortRequest) -> Iterable[str]:
    """Do what a task's own process does after an abort; return what it has ended."""
    task_aborted.send(
        end.task, task_id=request.task_id, request=request, outcome=request.outcome
    )
    if end.outcome == "failed":
        return ()
    # Celery has stored REVOKED, which ends nothing of what was to follow.
    try:
        return end_what_follows(end.task.backend, end.context, request.error())
    except Exception:
        logger.exception(
            "aioabort worker: what followed %s has not ended", request.task_id
        )
        return ()


def _finish(**_: object) -> None:
    if (recording := _recording) is not None:
        recording.wait(STOP_TIMEOUT)


signals.worker_shutdown.connect(_finish, weak=False)
