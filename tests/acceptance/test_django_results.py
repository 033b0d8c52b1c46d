"""A worker of a small Django project that keeps its results by the ORM."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread
from celery import Celery
from celery.contrib.abortable import AbortableAsyncResult

from aioabort import AbortClient, TaskAborted
from tests.support.apps import MakeApp
from tests.support.brokers import FOLDER_TRANSPORT, folder_broker
from tests.support.databases import query_dicts
from tests.support.django_results import (
    close_connection,
    database_settings,
)
from tests.support.programs import START_BOUND, spawn, until_started
from tests.support.waiting import BOUND, until

SETTINGS = """
CELERY_AIOABORT_DSN = {dsn!r}
CELERY_BROKER_TRANSPORT_OPTIONS = {options!r}
CELERY_BROKER_URL = "folder://"
CELERY_RESULT_BACKEND = "django-db"
CELERY_RESULT_EXTENDED = True
CELERY_TASK_TRACK_STARTED = True
DATABASES = {{"default": {database!r}}}
INSTALLED_APPS = ["django_celery_results", "shop"]
SECRET_KEY = "a secret of this test"
"""

FILES = {
    "shop/__init__.py": "from .celery import app as celery_app\n",
    "shop/celery.py": """
import os
import folder_broker
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
""",
    "shop/tasks.py": """
import time
from celery import shared_task
from django_celery_results.models import TaskResult
from aioabort import AbortableTask

@shared_task(base=AbortableTask, bind=True)
def stopping(self):
    self.update_state(state="PROGRESS")
    while True:
        self.raise_if_aborted()
        time.sleep(0.02)

@shared_task(base=AbortableTask, bind=True)
def returning(self):
    self.update_state(state="PROGRESS")
    while not self.is_aborted():
        time.sleep(0.02)
    return "stopped"

@shared_task
def plain(number):
    return number
""",
}

#: Ends all connections but those of aioabort and the test.
END_OF_THE_ORM = """
    SELECT count(pg_terminate_backend(pid)) AS ended FROM pg_stat_activity
    WHERE datname = current_database() AND application_name <> 'aioabort'
        AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


class Shop:
    """The project, its worker, and an app that publishes to it."""

    def __init__(self, folder: Path, dsn: str, app: Celery) -> None:
        self.folder = folder
        self.dsn = dsn
        self.app = app
        self.log = folder / "log"
        for name, text in FILES.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        text = SETTINGS.format(
            dsn=dsn,
            options=app.conf.broker_transport_options,
            database=database_settings(dsn),
        )
        (folder / "shop" / "settings.py").write_text(text)

    @property
    def environment(self) -> dict[str, str]:
        """The variables that its programs need."""
        paths = [str(self.folder), str(FOLDER_TRANSPORT)]
        given = os.environ.get("PYTHONPATH")
        paths += [given] if given else []
        return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}

    def start_worker(self) -> "subprocess.Popen[bytes]":
        """Start a worker with one child."""
        return spawn(
            *(sys.executable, "-m", "celery", "--app=shop", "worker"),
            *("--pool=prefork", "--concurrency=1", "--loglevel=INFO"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            log=self.log,
            cwd=self.folder,
            env=self.environment,
        )

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of ``celery aioabort``."""
        return subprocess.run(
            [sys.executable, "-m", "celery", "--app=shop", "aioabort", *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=START_BOUND,
            check=False,
        )

    def state(self, task_id: str) -> str | None:
        """Return the state that the table of results has."""
        statement = (
            "SELECT status FROM django_celery_results_taskresult WHERE task_id = %s"
        )
        rows = query_dicts(self.dsn, statement, task_id)
        return rows[0]["status"] if rows else None

    async def start(self, client: AbortClient, task: str) -> Any:
        """Publish a task, and return its result when its body runs."""
        sent = self.app.send_task(f"shop.tasks.{task}")
        await until(lambda: self.state(sent.id) == "PROGRESS")
        return client.result(sent.id)

    def end_connections(self) -> None:
        """Have PostgreSQL close the ORM's connections of the worker."""
        assert query_dicts(self.dsn, END_OF_THE_ORM)[0]["ended"] > 0


@pytest.fixture
def shop(tmp_path: Path, django_dsn: str, make_app: MakeApp) -> Shop:
    """The project with a database that is migrated."""
    sys.path.append(str(FOLDER_TRANSPORT))
    __import__("folder_broker")
    app = make_app(
        django_dsn,
        aioabort_dsn=django_dsn,
        result_backend="django-db",
        **folder_broker(tmp_path),
    )
    return Shop(tmp_path, django_dsn, app)


@pytest.fixture
async def worker(shop: Shop) -> AsyncIterator["subprocess.Popen[bytes]"]:
    """A worker that has run a task."""
    process = shop.start_worker()
    try:
        sent = shop.app.send_task("shop.tasks.plain", (1,))
        await until_started(process, lambda: shop.state(sent.id) == "SUCCESS", shop.log)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
async def client(shop: Shop) -> AsyncIterator[AbortClient]:
    """A client of the project."""
    async with AbortClient(shop.app) as client:
        yield client


async def test_connections_that_are_closed_while_tasks_run(
    shop: Shop, worker: "subprocess.Popen[bytes]", client: AbortClient
) -> None:
    """The abort arrives, the task's end is stored, and the worker goes on and stops.

    task: PROGRESS is stored | PostgreSQL closes the ORM's connection | abort | task: ends
    """
    result = await shop.start(client, "returning")
    shop.end_connections()
    receipt = await client.abort(result)
    assert await result.wait(BOUND) == "stopped"
    assert await receipt.settled(BOUND) == "returned"

    result = await shop.start(client, "stopping")
    shop.end_connections()
    receipt = await client.abort(result)
    with pytest.raises(TaskAborted):
        await result.wait(BOUND)
    assert await receipt.settled(BOUND) == "aborted"
    assert shop.state(result.id) == "REVOKED"

    sent = client.result(shop.app.send_task("shop.tasks.plain", (7,)).id)
    assert await sent.wait(BOUND) == 7
    worker.send_signal(signal.SIGTERM)
    await to_thread.run_sync(worker.wait, BOUND)


@pytest.mark.usefixtures("worker")
async def test_an_abort_that_flower_stores(shop: Shop, client: AbortClient) -> None:
    """The worker adopts the state ABORTED of the ORM's row."""
    result = await shop.start(client, "stopping")

    def abort() -> None:
        AbortableAsyncResult(result.id, app=shop.app).abort()
        close_connection()

    await to_thread.run_sync(abort)
    with pytest.raises(TaskAborted):
        await result.wait(BOUND)


@pytest.mark.usefixtures("worker")
async def test_the_commands_in_a_django_project(
    shop: Shop, client: AbortClient
) -> None:
    """They load Django before its models, and find tasks by their names."""
    result = await shop.start(client, "stopping")
    run = asyncio.to_thread
    done = await run(
        *(shop.command, "abort", "--task=shop.tasks.stopping", f"--wait={BOUND}")
    )
    assert done.returncode == 0, done.stderr
    assert f"{result.id}  aborted" in done.stdout
    done = await run(shop.command, "status", result.id, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "REVOKED"
    done = await run(shop.command, "list", "--json")
    assert [request["task_id"] for request in json.loads(done.stdout)] == [result.id]
    done = await run(shop.command, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
