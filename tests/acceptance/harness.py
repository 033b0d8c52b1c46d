"""Workers in processes of their own, and what a test does with one."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import anyio
import psycopg
from celery import Celery, Task
from psycopg.rows import dict_row

from aioabort import AbortableAsyncResult, AbortClient, AbortRequest, TaskSnapshot

BROKER_VARIABLE = "AIOABORT_TEST_BROKER"
PROJECT_VARIABLE = "AIOABORT_TEST_PROJECT"
PROJECT = Path(__file__).with_name("project")

#: Seconds that everything a test waits for may take on a busy machine.
BOUND = 20.0
START_BOUND = 30.0
STOP_BOUND = 10.0
PAUSE = 0.005

CONCURRENCY = {"prefork": 2, "threads": 4, "solo": 1, "gevent": 4, "eventlet": 4}

AGENTS = """
    SELECT pid, query_start FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'aioabort'
    ORDER BY pid
"""

T = TypeVar("T")


async def becomes_true(condition: Callable[[], object]) -> None:
    """Return when *condition* holds; raise TimeoutError if it does not in time."""

    async def ask() -> object:
        return condition()

    await first_true(ask)


async def first_true(question: Callable[[], Awaitable[T]]) -> T:
    """Return the first answer that is true; raise TimeoutError if none comes in time."""
    with anyio.fail_after(BOUND):
        while True:
            if answer := await question():
                return answer
            await anyio.sleep(PAUSE)


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
        await becomes_true(lambda: len(self.lines(mark)) >= times)


@dataclass(frozen=True)
class Worker:
    """A running worker, its database, and its project as a producer imports it."""

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
        return query(self.dsn, statement, *parameters)

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

        return await first_true(end)

    async def in_state(self, result: AbortableAsyncResult[Any], state: str) -> None:
        """Wait until Celery's row has *state*."""

        async def is_in_state() -> bool:
            return (await result.snapshot()).state == state

        await first_true(is_in_state)

    async def settled(self, result: AbortableAsyncResult[Any]) -> AbortRequest:
        """Wait until the worker has recorded what became of the request."""

        async def settled_request() -> AbortRequest | None:
            request = (await result.snapshot()).request
            return request if request is not None and request.outcome else None

        return await first_true(settled_request)

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


def query(dsn: str, statement: str, *parameters: object) -> list[dict[str, Any]]:
    """Run one statement on a connection of its own, and return its rows."""
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as connection:
        return connection.execute(statement, parameters).fetchall()


def execute(dsn: str, statement: str) -> None:
    """Run one statement that has no rows, on a connection of its own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


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
        _wait_until_ready(process, marks, log)
        agents = query(dsn, AGENTS)
        yield Worker(pool, concurrency, dsn, project, log, process, agents, variables)
    finally:
        _stop(process)
        project.app.close()


def _broker(folder: Path) -> dict[str, object]:
    queue = {"task_default_queue": f"aioabort-{folder.name}-{os.getpid()}"}
    if given := os.environ.get(BROKER_VARIABLE):
        return queue | {"broker_url": given}
    options = {
        "control_folder": str(folder / "control"),
        "data_folder_in": str(folder / "queue"),
        "data_folder_out": str(folder / "queue"),
        "polling_interval": 0.01,
        # Else messages move through the folder that all temporary files share.
        "processed_folder": str(folder / "processed"),
        "store_processed": True,
    }
    return queue | {"broker_url": "folder://", "broker_transport_options": options}


def _load_project(variables: dict[str, str]) -> ModuleType:
    """Import the project as a producer does; each worker has a copy of its own."""
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


def _wait_until_ready(
    process: "subprocess.Popen[bytes]", marks: Place, log: Path
) -> None:
    deadline = time.monotonic() + START_BOUND
    while "body" not in marks:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"The worker did not start:\n{log.read_text()}")
        time.sleep(PAUSE)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_BOUND)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
