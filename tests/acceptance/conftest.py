"""One worker for each pool, with notifications and without, started when needed."""

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from aioabort import AbortClient
from tests.support.brokers import redis_keys
from tests.support.databases import NewDatabase

from .harness import Place, Stage, Worker, running_worker

POOLS = ("prefork", "threads", "solo")

#: With notifications, the poll comes five times more slowly than this.
SETTINGS: dict[str, dict[str, Any]] = {
    "notified": {"aioabort_poll_interval": 0.2},
    "polling": {"aioabort_notify": False, "aioabort_poll_interval": 0.1},
}

WORKERS = [f"{pool}-{mode}" for pool in POOLS for mode in SETTINGS]

#: Our own result backend, in place of Celery's: the scheme of its URL.
OURS = "aioabort+postgresql"

#: Those whose results are stored by it: each pool, and each mode.
OUR_WORKERS = ["prefork-notified-ours", "threads-polling-ours", "solo-notified-ours"]

#: For what must hold whichever result backend stores beside it.
over_both_backends = pytest.mark.parametrize(
    "worker", [*WORKERS, *OUR_WORKERS], indirect=True
)

#: The log of a test's worker, and how long it was when the test began.
LOG = pytest.StashKey[tuple[Path, int]]()

#: Starts a worker with a database of its own, or with the one that is given.
StartWorker = Callable[..., Worker]


@pytest.fixture(scope="session")
def start_worker(
    new_database: NewDatabase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[StartWorker]:
    """Starts workers, which are stopped when the session ends."""
    started: list[Worker] = []
    with ExitStack() as stack:

        def start(
            pool: str,
            dsn: str | None = None,
            backend: str = "db+postgresql+psycopg",
            **settings: object,
        ) -> Worker:
            dsn = dsn or stack.enter_context(new_database())
            url = dsn.replace("postgresql", backend, 1)
            folder = tmp_path_factory.mktemp(pool)
            started.append(
                stack.enter_context(running_worker(folder, dsn, url, pool, **settings))
            )
            return started[-1]

        yield start
        # All at once, as each takes its time.
        for worker in started:
            worker.process.terminate()


@pytest.fixture(scope="session")
def workers(start_worker: StartWorker) -> Callable[[str], Worker]:
    """The workers by name, such as "solo-polling"; each is started when asked for.

    The results of "solo-polling-ours" are stored by our own backend.
    """

    @cache
    def worker(name: str) -> Worker:
        pool, mode, *ours = name.split("-")
        backend = {"backend": OURS} if ours else {}
        return start_worker(pool, **SETTINGS[mode], **backend)

    return worker


@pytest.fixture(scope="session")
def in_redis() -> Iterator[tuple[str, dict[str, str]]]:
    """A Redis and the options that keep our keys apart, for results and for messages."""
    with redis_keys() as keys:
        yield keys


@pytest.fixture(scope="session")
def broker_in_redis(in_redis: tuple[str, dict[str, str]]) -> dict[str, Any]:
    """The settings of an app whose broker is Redis: its workers have an event loop."""
    url, options = in_redis
    return {"broker_url": url, "broker_transport_options": options}


@pytest.fixture(params=WORKERS)
def worker(request: pytest.FixtureRequest, workers: Callable[[str], Worker]) -> Worker:
    """Each worker in turn."""
    worker = workers(request.param)
    follow_log(request, worker)
    return worker


def follow_log(request: pytest.FixtureRequest, worker: Worker) -> None:
    """Show what *worker* logs from now on if the test fails."""
    request.node.stash[LOG] = (worker.log, worker.log.stat().st_size)


@pytest.fixture
async def client(worker: Worker) -> AsyncIterator[AbortClient]:
    """An open client of the worker's app."""
    async with AbortClient(worker.app) as client:
        yield client


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A folder for the marks and gates of one test."""
    return Place(tmp_path)


@pytest.fixture
def stage(worker: Worker, client: AbortClient, place: Place) -> Stage:
    """What a test sends tasks with, and follows them by."""
    return Stage(worker, client, place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the worker's log of a test that fails."""
    report = yield
    if report.failed and LOG in item.stash:
        log, start = item.stash[LOG]
        report.sections.append(("Worker's log", log.read_bytes()[start:].decode()))
    return report
