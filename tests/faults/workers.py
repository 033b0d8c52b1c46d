"""Workers in processes of their own, and the diary that their tasks keep."""

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Never

import anyio
from celery import Celery

from .postgres import celery_url
from .processes import becomes_true, ended, spawn

PROJECT = Path(__file__).with_name("project")
BROKERS = Path(__file__).parents[1] / "acceptance" / "project"

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
    #: Of each run that ended: when it looked in vain the last time, and saw the abort.
    in_vain: list[float] = field(default_factory=list)
    saw: list[float] = field(default_factory=list)


class Diary:
    """The file in which all workers write."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "diary"
        self.path.touch()
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
                case ["end", task_id, in_vain, saw]:
                    self._pages[task_id].in_vain.append(float(in_vain))
                    self._pages[task_id].saw.append(float(saw))
        return self._pages

    def has_begun(self, task_id: str) -> bool:
        """Whether the body of the task has begun."""
        page = self.read().get(task_id)
        return page is not None and bool(page.begun)

    def forget(self) -> None:
        """Forget what was read."""
        self._pages.clear()


@dataclass(frozen=True)
class Place:
    """Where workers keep things: results at *dsn*, tasks at *broker*."""

    folder: Path
    broker: dict[str, Any]
    diary: Diary

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
        **settings: Any,
    ) -> None:
        self.name = name
        self.conf = place.conf(name, dsn, **settings)
        self.log = place.folder / f"{name}.log"
        self._place = place
        self._environment = environment or {}
        self._pool = pool
        self._concurrency = concurrency
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The worker's main process."""
        assert self._process is not None
        return self._process.pid

    @property
    def processes(self) -> int:
        """In how many processes its tasks run."""
        return self._concurrency if self._pool == "prefork" else 1

    async def start(self) -> None:
        """Start it, and wait until it takes tasks."""
        self._starts += 1
        mark = f"{self.name}-{self._starts}"
        first = self._environment.get("PYTHONPATH", "")
        paths = [first, str(PROJECT), str(BROKERS), os.environ.get("PYTHONPATH", "")]
        own = {
            "AIOABORT_FAULTS_DIARY": str(self._place.diary.path),
            "AIOABORT_FAULTS_PROJECT": json.dumps(self.conf),
            "AIOABORT_FAULTS_WORKER": mark,
        }
        self._process = spawn(
            *(sys.executable, "-m", "celery", "--app=faultproj", "worker"),
            *(f"--pool={self._pool}", f"--concurrency={self._concurrency}"),
            *("--loglevel=WARNING", f"--hostname={self.name}@%h"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
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
                raise RuntimeError(f"{self.name}:\n{self.log.read_text()[-3000:]}")
            self._place.diary.read()
            return mark in self._place.diary.ready

        await becomes_true(is_ready, 60)

    async def keep_alive(self) -> Never:
        """Start it again whenever it has ended by itself, as an init system does."""
        while True:
            process = self._process
            if process is not None and process.poll() is not None:
                await self.start()
            await anyio.sleep(RESTART_PAUSE)

    async def stop(self, how: int = WARM, bound: float = 60.0) -> None:
        """Stop it, and wait for its end."""
        if self._process is not None:
            process, self._process = self._process, None
            process.send_signal(how)
            await ended(process, bound)
