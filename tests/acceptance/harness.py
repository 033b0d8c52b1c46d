"""Workers in processes of their own, and what a test does with one."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery, Task

from aioabort import (
    AbortableAsyncResult,
    AbortClient,
    AbortRequest,
    TaskAborted,
    TaskSnapshot,
)
from tests.support.brokers import folder_broker
from tests.support.databases import query_dicts
from tests.support.programs import block_until_started
from tests.support.waiting import BOUND, until

BROKER_VARIABLE = "AIOABORT_TEST_BROKER"
PROJECT_VARIABLE = "AIOABORT_TEST_PROJECT"
PROJECT = Path(__file__).with_name("project")

CONCURRENCY = {"prefork": 2, "threads": 4, "solo": 1, "gevent": 4, "eventlet": 4}

AGENTS = """
    SELECT pid, query_start FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'aioabort'
    ORDER BY pid
"""


class Place:
    """A folder in which a task leaves marks, and a test opens gates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, mark: str) -> bool:
        return (self.folder / mark).exists()

    def lines(self, mark: str) -> list[str]:
        """Return what the mark says; each time that it was left is a line."""
        return (self.folder / mark).read_text().splitlines() if mark in self else []

    def open(self, gate: str) -> None:
        """Let the tasks that wait for *gate* go on."""
        (self.folder / gate).touch()

    async def reached(self, mark: str, times: int = 1) -> None:
        """Wait until *mark* was left so many times."""
        await until(lambda: len(self.lines(mark)) >= times)


@dataclass(frozen=True)
class Worker:
    """A running worker, its database, and its project as a client imports it."""

    pool: str
    concurrency: int
    dsn: str
    project: ModuleType
    log: Path
    process: "subprocess.Popen[bytes]"
    #: The connections of aioabort's when no abortable task had run yet.
    first_connections: list[dict[str, Any]]
    #: What makes the project the same in another process.
    variables: dict[str, str]

    @property
    def app(self) -> Celery:
        """The app that the worker serves."""
        return self.project.app

    @property
    def poll_interval(self) -> float:
        """The seconds between two polls: with notifications, they are few."""
        interval: float = self.app.conf.aioabort_poll_interval
        return interval * (5 if self.app.conf.get("aioabort_notify", True) else 1)

    @property
    def stores_as_ours(self) -> bool:
        """Whether its results are stored by our own backend."""
        return str(self.app.conf.result_backend).startswith("aioabort+")

    @property
    def processes(self) -> int:
        """In how many processes tasks run."""
        return self.concurrency if self.pool == "prefork" else 1

    def query(self, statement: str, *parameters: object) -> list[dict[str, Any]]:
        """Ask the worker's database."""
        return query_dicts(self.dsn, statement, *parameters)

    def connections(self) -> list[dict[str, Any]]:
        """Return aioabort's connections, with the moment of the latest statement."""
        return self.query(AGENTS)


@dataclass(frozen=True)
class Stage:
    """One test's view of a worker: it sends tasks and follows them."""

    worker: Worker
    client: AbortClient
    place: Place

    @property
    def tasks(self) -> ModuleType:
        """The tasks of the project."""
        return self.worker.project

    def scene(self, name: str) -> "Stage":
        """Return a stage with a folder of its own, for one task of several."""
        folder = self.place.folder / name
        folder.mkdir()
        return replace(self, place=Place(folder))

    def publish(
        self, task: Task, *args: object, **options: Any
    ) -> AbortableAsyncResult[Any]:
        """Send *task* with Celery's options."""
        sent = task.apply_async((str(self.place.folder), *args), **options)
        return self.client.result(sent.id)

    async def start(
        self, task: Task, *args: object, **options: Any
    ) -> AbortableAsyncResult[Any]:
        """Send *task*, and wait until its body runs."""
        result = self.publish(task, *args, **options)
        await self.place.reached("body")
        return result

    async def ended(self, result: AbortableAsyncResult[Any]) -> TaskSnapshot[Any]:
        """Wait until the task has ended, in whatever way, and return how."""

        async def end() -> TaskSnapshot[Any] | None:
            snapshot = await result.snapshot()
            return snapshot if snapshot.is_finished else None

        return await until(end)

    async def in_state(self, result: AbortableAsyncResult[Any], state: str) -> None:
        """Wait until Celery's row has *state*."""

        async def is_in_state() -> bool:
            return (await result.snapshot()).state == state

        await until(is_in_state)

    async def settled(self, result: AbortableAsyncResult[Any]) -> AbortRequest:
        """Wait until the worker has recorded the outcome of the request."""

        async def settled_request() -> AbortRequest | None:
            request = (await result.snapshot()).request
            return request if request is not None and request.outcome else None

        return await until(settled_request)

    async def aborted(self, result: AbortableAsyncResult[Any]) -> TaskAborted:
        """Wait until the task, which saw its abort, is recorded so; return its error."""
        with pytest.raises(TaskAborted, match="enough") as raised:
            await result.wait(BOUND)
        assert (await result.snapshot()).state == "REVOKED"
        request = await self.settled(result)
        assert request.outcome == "aborted"
        assert request.seen_at is not None
        return raised.value

    @asynccontextmanager
    async def occupied(self) -> AsyncIterator[None]:
        """Leave no slot of the pool free: what is sent inside stays in the queue."""
        slots = range(self.worker.concurrency)
        for slot in slots:
            self.publish(self.tasks.hold, slot)
        for slot in slots:
            await self.place.reached(f"held-{slot}")
        try:
            yield
        finally:
            self.place.open("release")

    def state_after_progress(self) -> str:
        """Return the state of a task that has reported progress since its abort.

        Celery's own backend overwrites what abort() wrote, and ours does not.
        """
        return "ABORTED" if self.worker.stores_as_ours else "PROGRESS"

    def row(self, result: AbortableAsyncResult[Any]) -> dict[str, Any] | None:
        """Return Celery's row of the task, every column of it."""
        rows = self.worker.query(
            "SELECT * FROM celery_taskmeta WHERE task_id = %s", result.id
        )
        return rows[0] if rows else None


@contextmanager
def running_worker(
    folder: Path, dsn: str, celery_url: str, pool: str, **settings: object
) -> Iterator[Worker]:
    """Run a worker that keeps its results at *dsn*, until the block ends."""
    concurrency = settings.get("worker_concurrency", CONCURRENCY[pool])
    assert isinstance(concurrency, int)
    variables = {
        PROJECT_VARIABLE: json.dumps(
            {
                **_broker(folder),
                "result_backend": celery_url,
                "task_track_started": True,
                "result_chord_retry_interval": 0.1,
                "worker_enable_remote_control": False,
                # Seconds until a lost process counts as lost.
                "worker_lost_wait": 0.1,
                **settings,
            }
        )
    }
    project = _load_project(variables)
    marks = Place(folder)
    # Sent before the worker starts: kombu's folder creates its exchange in two steps.
    project.plain.delay(str(folder))
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "--app=proj", "worker"),
                *(f"--pool={pool}", f"--concurrency={concurrency}", "--loglevel=INFO"),
                f"--hostname={folder.name}@%h",
                *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            ],
            cwd=PROJECT,
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        block_until_started(process, lambda: "body" in marks, log)
        agents = query_dicts(dsn, AGENTS)
        yield Worker(pool, concurrency, dsn, project, log, process, agents, variables)
    finally:
        _stop(process)
        project.app.close()


def _broker(folder: Path) -> dict[str, object]:
    queue = {"task_default_queue": f"aioabort-{folder.name}-{os.getpid()}"}
    if given := os.environ.get(BROKER_VARIABLE):
        return queue | {"broker_url": given}
    return queue | folder_broker(folder)


def _load_project(variables: dict[str, str]) -> ModuleType:
    """Import the project as a client does; each worker has a copy of its own."""
    if str(PROJECT) not in sys.path:
        sys.path.append(str(PROJECT))
    spec = importlib.util.spec_from_file_location("proj", PROJECT / "proj.py")
    assert spec is not None
    assert spec.loader is not None
    project = importlib.util.module_from_spec(spec)
    os.environ.update(variables)
    try:
        spec.loader.exec_module(project)
    finally:
        for variable in variables:
            del os.environ[variable]
    return project


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(BOUND)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
