"""The project that the workers serve: bodies that keep a diary of their checks.

Times are of the machine's monotonic clock, which all processes share and which no
fault steps.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import folder_broker  # noqa: F401 (makes the broker known to kombu)
from celery import Celery, signals
from celery.backends.database.session import SessionManager
from celery.exceptions import Ignore
from celery.worker.request import Request

from aioabort import AbortableTask, TaskAborted, current_token
from aioabort.worker.agent.agent import agent_for

#: Seconds after which a body that was asked to stop, and is not told, gives up.
LIFETIME = 90.0
PAUSE = 0.02

app = Celery("faultproj", task_cls="aioabort:AbortableTask")
CONF = json.loads(os.environ["AIOABORT_FAULTS_PROJECT"])
app.conf.update(CONF)

# Celery pools connections in prefork children only; elsewhere it would spend most of
# this suite's time on opening them.
SessionManager.forked = True


if broker := os.environ.get("AIOABORT_FAULTS_OTHER_BROKER"):
    other_app = Celery("other", broker=broker, set_as_current=False)
    other_app.conf.update(CONF | {"broker_url": broker})

    @signals.worker_process_init.connect
    def start_agent_for_other_app(**_: object) -> None:
        """Be a process in which a task of another app has run."""
        agent_for(other_app)


def clock() -> float:
    """Return the moment, whatever is done to the clock of ``time.time()``."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def note(*words: object) -> None:
    """Write a line into the diary of all workers."""
    line = " ".join(map(str, words)) + "\n"
    file = os.open(os.environ["AIOABORT_FAULTS_DIARY"], os.O_WRONLY | os.O_APPEND)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


@signals.worker_ready.connect
def tell(**_: object) -> None:
    """Tell the suite that the worker takes tasks."""
    note("ready", os.environ["AIOABORT_FAULTS_WORKER"], clock())


@signals.task_received.connect
def tell_of_delivery(request: Request, **_: object) -> None:
    """Tell the suite that the broker has delivered a message."""
    note("received", request.id)


class Looks:
    """The times of a body's last check without an abort, and of the check that saw one."""

    def __init__(self) -> None:
        self._token = current_token()
        self._deadline = clock() + LIFETIME
        self.in_vain = 0.0
        self.saw = 0.0

    def is_late(self) -> bool:
        """Whether the body has been waiting for too long."""
        self.in_vain = clock()
        return self.in_vain > self._deadline

    def __call__(self) -> bool:
        """Look."""
        moment = clock()
        if self._token.is_aborted():
            self.saw = self.saw or clock()
            return True
        self.in_vain = moment
        return moment > self._deadline


@contextmanager
def diary(task: AbortableTask) -> Iterator[Looks]:
    """Write down the begin and the end of a body."""
    looks = Looks()
    note("begin", task.request.id, clock())
    try:
        yield looks
    finally:
        note("end", task.request.id, looks.in_vain, looks.saw, clock())


@app.task(bind=True, name="returning")
def returning(self: AbortableTask, cleanup: float) -> str:
    """Stop by a return."""
    with diary(self) as look:
        while not look():
            time.sleep(PAUSE)
        time.sleep(cleanup)
        return "stopped"


@app.task(bind=True, name="raising")
def raising(self: AbortableTask, cleanup: float) -> None:
    """Stop by the exception that is made for it."""
    with diary(self) as look:
        while not look():
            time.sleep(PAUSE)
        time.sleep(cleanup)
        self.raise_if_aborted()


@app.task(bind=True, name="failing")
def failing(self: AbortableTask, cleanup: float) -> None:
    """Stop by an exception of its own."""
    with diary(self) as look:
        while not look():
            time.sleep(PAUSE)
        time.sleep(cleanup)
        raise ValueError("stopped in the middle")


@app.task(bind=True, name="progressing")
def progressing(self: AbortableTask) -> None:
    """Report progress, which writes over Celery's status, and look."""
    with diary(self) as look:
        while not look():
            self.update_state(state="PROGRESS")
            time.sleep(PAUSE * 5)
        self.raise_if_aborted()


@app.task(bind=True, name="waiting")
def waiting(self: AbortableTask) -> None:
    """Sleep until the abort comes."""
    with diary(self) as look:
        while not look():
            self.abort_token.wait(1)
        self.raise_if_aborted()


@app.task(bind=True, name="cancelled")
async def cancelled(self: AbortableTask) -> None:
    """Be a coroutine that an abort cancels."""
    with diary(self) as look:
        try:
            while not look():
                await asyncio.sleep(PAUSE * 5)
        except asyncio.CancelledError:
            look()
            raise
        self.raise_if_aborted()


@app.task(bind=True, name="retrying", max_retries=2)
def retrying(self: AbortableTask) -> None:
    """Try again twice before the real run."""
    with diary(self) as look:
        if self.request.retries < 2:
            raise self.retry(countdown=0.1)
        while not look():
            time.sleep(PAUSE)
        self.raise_if_aborted()


@app.task(bind=True, name="short")
def short(self: AbortableTask, seconds: float) -> str:
    """Look for a while, and end by itself."""
    end = clock() + seconds
    with diary(self) as look:
        while clock() < end and not look():
            time.sleep(PAUSE)
        return "done"


@app.task(bind=True, name="undecided")
def undecided(self: AbortableTask, cleanup: float) -> str:
    """Return a value, unless another run of the same id raises."""
    with diary(self) as look:
        while not look():
            time.sleep(PAUSE)
        time.sleep(cleanup)
        if random.random() < 0.5:
            self.raise_if_aborted()
        return "stopped"


@app.task(name="piece")
def piece(task_id: str) -> str:
    """Be one of the items of the mapping *task_id*."""
    note("begin", task_id, clock())
    time.sleep(PAUSE)
    note("end", task_id, 0.0, 0.0, clock())
    return "done"


@app.task(bind=True, name="ignoring")
def ignoring(self: AbortableTask) -> None:
    """Raise Ignore after the abort was requested, without a check."""
    permit = Path(os.environ["AIOABORT_FAULTS_DIARY"]).parent / "permits"
    end = clock() + LIFETIME
    with diary(self):
        while clock() < end and not (permit / self.request.id).exists():
            time.sleep(PAUSE)
        raise Ignore


@app.task(bind=True, name="computing", abort_mode="raise")
def computing(self: AbortableTask) -> None:
    """Make no check, in pure Python."""
    with diary(self) as look:
        try:
            while not look.is_late():
                sum(range(1_000))
        except TaskAborted:
            look.saw = clock()
            raise


@app.task(bind=True, name="stubborn")
def stubborn(self: AbortableTask) -> None:
    """Make no check, and go on until it is killed."""
    with diary(self) as look:
        while not look.is_late():
            time.sleep(PAUSE)


@app.task(bind=True, name="limited")
def limited(self: AbortableTask) -> None:
    """Do the same; its soft time limit may come first."""
    with diary(self) as look:
        while not look.is_late():
            time.sleep(PAUSE)


@app.task(bind=True, name="large")
def large(self: AbortableTask, size: int) -> str:
    """Return so many characters."""
    with diary(self):
        return "x" * size


@app.task(bind=True, name="blind")
def blind(self: AbortableTask, seconds: float) -> str:
    """Never look."""
    with diary(self):
        time.sleep(seconds)
        return "done"
