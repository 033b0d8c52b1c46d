"""Workers in processes of their own, and the diary that their tasks keep."""

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, Never

import anyio
from celery import Celery

from tests.support.brokers import FOLDER_TRANSPORT, folder_broker
from tests.support.databases import celery_url
from tests.support.programs import spawn
from tests.support.waiting import BOUND, until

from .processes import ended

PROJECT = Path(__file__).with_name("project")

WARM, COLD = signal.SIGTERM, signal.SIGQUIT

#: aioabort's own settings, in seconds.
POLL_INTERVAL = 1.0

#: Seconds between two looks whether a worker has ended.
RESTART_PAUSE = 0.2

SETTINGS: dict[str, Any] = {
    "aioabort_poll_interval": POLL_INTERVAL,
    "broker_connection_retry_on_startup": True,
    "broker_transport_options": {},
    "database_engine_options": {"pool_size": 20, "max_overflow": 30},
    # Celery gives up a result after three tries within a tenth of a second. That loss
    # would be Celery's, and is not what is audited here; one round has it as it is.
    "result_backend_always_retry": True,
    "result_backend_max_retries": 100_000,
    "result_backend_max_sleep_between_retries_ms": 200,
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "task_track_started": True,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_enable_remote_control": False,
    "worker_lost_wait": 0.5,
    "worker_prefetch_multiplier": 2,
}


@dataclass
class Page:
    """What the diary says of one task."""

    #: How often the broker has delivered it.
    received: int = 0
    #: Of each run: when the body began.
    begun: list[float] = field(default_factory=list)
    #: For each run that ended: its last check without an abort, and the check that saw one.
    in_vain: list[float] = field(default_factory=list)
    saw: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)

    @property
    def has_seen(self) -> bool:
        """Whether a body saw an abort."""
        return any(self.saw)


class Diary:
    """The file in which all workers write."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "diary"
        self.path.touch()
        self._permits = folder / "permits"
        self._permits.mkdir()
        self.ready: set[str] = set()
        self._pages: dict[str, Page] = defaultdict(Page)
        self._file = self.path.open()
        self._rest = ""

    def read(self) -> dict[str, Page]:
        """Read on; return what is written of each task."""
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        for line in lines:
            match line.split():
                case ["ready", name, _]:
                    self.ready.add(name)
                case ["received", task_id]:
                    self._pages[task_id].received += 1
                case ["begin", task_id, moment]:
                    self._pages[task_id].begun.append(float(moment))
                case ["end", task_id, in_vain, saw, moment]:
                    self._pages[task_id].in_vain.append(float(in_vain))
                    self._pages[task_id].saw.append(float(saw))
                    self._pages[task_id].ended.append(float(moment))
        return self._pages

    def has_begun(self, task_id: str, times: int = 1) -> bool:
        """Whether the body of the task has begun so many times."""
        page = self.read().get(task_id)
        return page is not None and len(page.begun) >= times

    def unfinished(self) -> dict[str, Page]:
        """Return the pages of tasks with a run that has not ended."""
        pages = self.read().items()
        return {key: page for key, page in pages if len(page.ended) < len(page.begun)}

    def permit(self, task_id: str) -> None:
        """Let a task end that waits for that."""
        (self._permits / task_id).touch()

    def close(self) -> None:
        """Stop reading."""
        self._file.close()

    def forget(self) -> None:
        """Forget what was read."""
        self._pages.clear()


@dataclass(frozen=True)
class Place:
    """Where workers keep things: results at *dsn*, tasks at *broker*."""

    folder: Path
    broker: dict[str, Any]
    diary: Diary
    #: The interpreter of every second worker.
    other_python: str = sys.executable
    _pythons: Iterator[str] = field(init=False)

    def __post_init__(self) -> None:
        """Begin with the interpreter that runs the tests."""
        pythons = cycle([sys.executable, self.other_python])
        object.__setattr__(self, "_pythons", pythons)

    def next_python(self) -> str:
        """Return the interpreter of the next worker: each by turns."""
        return next(self._pythons)

    def app(self, name: str, dsn: str, **settings: Any) -> Celery:
        """Return an app as the worker *name* has it, to publish to that worker."""
        app = Celery(name, set_as_current=False)
        app.conf.update(self.conf(name, dsn, **settings))
        return app

    def conf(self, name: str, dsn: str, **settings: Any) -> dict[str, Any]:
        """Return the configuration of the worker *name*."""
        queue = {"task_default_queue": f"aioabort-faults-{name}-{os.getpid()}"}
        backend = {"result_backend": celery_url(dsn)}
        return SETTINGS | self.broker | queue | backend | settings


def folder_transport(folder: Path) -> dict[str, Any]:
    """Return the settings of a broker that is a *folder*, and let this process publish."""
    # The workers have a path of their own.
    if str(FOLDER_TRANSPORT) not in sys.path:
        sys.path.append(str(FOLDER_TRANSPORT))
    __import__("folder_broker")
    return folder_broker(folder)


class Worker:
    """One worker, which may be stopped and started again."""

    def __init__(
        self,
        place: Place,
        name: str,
        dsn: str,
        *,
        environment: dict[str, str] | None = None,
        pool: str = "prefork",
        concurrency: int = 4,
        arguments: tuple[str, ...] = (),
        python: str | None = None,
        **settings: Any,
    ) -> None:
        self.name = name
        self.conf = place.conf(name, dsn, **settings)
        self.log = place.folder / f"{name}.log"
        self._place = place
        self._environment = environment or {}
        self._pool = pool
        self._concurrency = concurrency
        self._arguments = arguments
        self._python = python or place.next_python()
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The worker's main process."""
        assert self._process is not None
        return self._process.pid

    @property
    def end_of_log(self) -> str:
        """The last lines that it has logged."""
        return self.log.read_text(errors="replace")[-3000:]

    @property
    def processes(self) -> int:
        """In how many processes its tasks run."""
        return self._concurrency if self._pool == "prefork" else 1

    async def start(self) -> None:
        """Start it, and wait until it takes tasks."""
        self._starts += 1
        mark = f"{self.name}-{self._starts}"
        first = self._environment.get("PYTHONPATH", "")
        paths = [
            first,
            str(PROJECT),
            str(FOLDER_TRANSPORT),
            os.environ.get("PYTHONPATH", ""),
        ]
        own = {
            "AIOABORT_FAULTS_DIARY": str(self._place.diary.path),
            "AIOABORT_FAULTS_PROJECT": json.dumps(self.conf),
            "AIOABORT_FAULTS_WORKER": mark,
        }
        self._process = spawn(
            *(self._python, "-m", "celery", "--app=faultproj", "worker"),
            *(f"--pool={self._pool}", f"--concurrency={self._concurrency}"),
            *("--loglevel=WARNING", f"--hostname={self.name}@%h"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            *self._arguments,
            log=self.log,
            cwd=PROJECT,
            env=os.environ
            | self._environment
            | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
            | own,
        )
        process = self._process

        def is_ready() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"{self.name}:\n{self.end_of_log}")
            self._place.diary.read()
            return mark in self._place.diary.ready

        try:
            await until(is_ready, 2 * BOUND)
        except TimeoutError as error:
            error.add_note(f"{self.name}:\n{self.end_of_log}")
            raise

    async def keep_alive(self) -> Never:
        """Start it again whenever it has ended by itself, as an init system does."""
        while True:
            process = self._process
            if process is not None and process.poll() is not None:
                await self.start()
            await anyio.sleep(RESTART_PAUSE)

    async def kill(self) -> None:
        """End it with its children, whatever they do."""
        if self._process is not None:
            process, self._process = self._process, None
            # spawn() has made it the leader of a group of its own.
            os.killpg(process.pid, signal.SIGKILL)
            await ended(process)

    async def stop(self, how: int = WARM, bound: float = 2 * BOUND) -> None:
        """Stop it, and wait for its end."""
        if self._process is not None:
            process, self._process = self._process, None
            process.send_signal(how)
            try:
                await ended(process, bound)
            except TimeoutError as error:
                error.add_note(f"{self.name}:\n{self.end_of_log}")
                error.add_note(f"unfinished: {self._place.diary.unfinished()}")
                raise
