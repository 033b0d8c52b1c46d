"""The real Flower: its abort stops a task of ours, and it shows how that ended."""

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from anyio import to_thread

from aioabort import TaskAborted
from tests.support.brokers import redis_keys
from tests.support.databases import NewDatabase
from tests.support.programs import block_until_started
from tests.support.waiting import BOUND, until

from .conftest import StartWorker, follow_log
from .harness import PROJECT, Stage, Worker

#: The schemes of the result backend.
RESULTS = {
    "db": "db+postgresql+psycopg://",
    "aioabort": "aioabort+postgresql://",
    "redis": "redis://",
}


class Flower:
    """A running Flower and its API."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def get(self, path: str) -> Any:
        """Return the answer of ``GET /api/…``; None if there is no such thing."""
        return await to_thread.run_sync(self._ask, "GET", path)

    async def post(self, path: str) -> Any:
        """Return the answer of ``POST /api/…``."""
        return await to_thread.run_sync(self._ask, "POST", path)

    async def shows(self, task_id: str, state: str) -> dict[str, Any]:
        """Wait until the list of tasks shows *task_id* in *state*; return its line."""

        async def line() -> dict[str, Any] | None:
            tasks = await self.get("tasks")
            task: dict[str, Any] = tasks.get(task_id, {})
            return task if task.get("state") == state else None

        return await until(line)

    def _ask(self, method: str, path: str) -> Any:
        try:
            request = Request(f"{self._url}/api/{path}", method=method)
            with urlopen(request, timeout=BOUND) as answer:
                return json.load(answer)
        except HTTPError as error:
            if error.code != 404:
                raise
            return None


@pytest.fixture(scope="session")
def events_in_redis() -> Iterator[dict[str, Any]]:
    """The settings of an app whose events reach Flower: a folder cannot carry them."""
    with redis_keys() as (url, options):
        yield {
            "broker_url": url,
            "broker_transport_options": options,
            "worker_send_task_events": True,
            "aioabort_poll_interval": 0.2,
        }


@pytest.fixture(scope="session")
def event_workers(
    start_worker: StartWorker,
    events_in_redis: dict[str, Any],
    new_database: NewDatabase,
) -> Iterator[Callable[[str], Worker]]:
    """Workers that send events, by their result backend."""
    with new_database() as dsn:

        @cache
        def worker(results: str) -> Worker:
            if results == "redis":
                settings = {
                    "aioabort_dsn": dsn,
                    "result_backend": events_in_redis["broker_url"],
                    "result_backend_transport_options": events_in_redis[
                        "broker_transport_options"
                    ],
                }
            else:
                url = dsn.replace("postgresql://", RESULTS[results], 1)
                settings = {"result_backend": url}
            return start_worker("prefork", dsn, **settings, **events_in_redis)

        yield worker


@pytest.fixture(params=RESULTS)
def worker(
    request: pytest.FixtureRequest, event_workers: Callable[[str], Worker]
) -> Worker:
    """The worker with each result backend in turn."""
    worker = event_workers(request.param)
    follow_log(request, worker)
    return worker


@contextmanager
def running_flower(folder: Path, worker: Worker) -> Iterator[Flower]:
    """Run Flower beside *worker*, as its user does, until the block ends."""
    log = folder / "flower.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "--app=proj", "flower"),
                *("--address=127.0.0.1", "--port=0"),
            ],
            cwd=PROJECT,
            env=os.environ | worker.variables | {"FLOWER_UNAUTHENTICATED_API": "true"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Flower(_address(process, log))
    finally:
        process.terminate()
        process.wait(BOUND)


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    """Return where Flower says that it is."""

    def address() -> re.Match[str] | None:
        return re.search(r"http://127\.0\.0\.1:\d+", log.read_text())

    return block_until_started(process, address, log)[0]


@pytest.fixture
async def flower(stage: Stage, tmp_path: Path) -> AsyncIterator[Flower]:
    """A Flower that hears of what the worker does."""
    # Not the folder of the stage, which would take their marks for those of its own task.
    heard = tmp_path / "heard"
    heard.mkdir()
    with running_flower(tmp_path, stage.worker) as flower:
        # What happens before it listens, it never hears of.
        async def hears() -> object:
            stage.tasks.plain.delay(str(heard))
            return await flower.get("tasks")

        await until(hears)
        yield flower


async def test_abort_of_a_running_task(stage: Stage, flower: Flower) -> None:
    """Flower's abort stops it, and Flower's list shows it as REVOKED."""
    result = await stage.start(stage.tasks.raising)
    await flower.shows(result.id, "STARTED")

    answer = await flower.post(f"task/abort/{result.id}")

    assert answer == {"message": f"Aborted '{result.id}'"}
    with pytest.raises(TaskAborted):
        await result.wait(BOUND)
    assert (await stage.settled(result)).outcome == "aborted"
    await flower.shows(result.id, "REVOKED")


async def test_abort_of_ours(stage: Stage, flower: Flower) -> None:
    """Flower's list shows the end of a task that the client aborted."""
    result = await stage.start(stage.tasks.raising)
    await result.abort(reason="why")

    line = await flower.shows(result.id, "REVOKED")

    assert line["name"] == stage.tasks.raising.name
    assert line["failed"] is None


async def test_abort_of_a_task_that_returns(stage: Stage, flower: Flower) -> None:
    """One that looks and returns has succeeded, for Flower as for Celery."""
    result = await stage.start(stage.tasks.returning)
    await flower.post(f"task/abort/{result.id}")

    assert await result.wait(BOUND) == "stopped"
    await flower.shows(result.id, "SUCCESS")
