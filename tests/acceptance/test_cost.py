"""Looking for an abort costs nothing, and idle workers ask nothing."""

import time

import pytest

from aioabort import sync
from aioabort.worker.agent.agent import stop_agents
from tests.support.waiting import BOUND, until

from .conftest import over_both_backends
from .harness import Place, Stage, Worker

LOOKS = 1_000_000

TRANSACTIONS = """
    SELECT xact_commit + xact_rollback AS number FROM pg_stat_database
    WHERE datname = current_database()
"""


@over_both_backends
async def test_million_looks_ask_nothing(stage: Stage) -> None:
    """A million looks take less time than a thousand statements would."""
    result = await stage.start(stage.tasks.looking, LOOKS)
    [before] = stage.worker.query(TRANSACTIONS)
    stage.place.open("look")
    await stage.place.reached("looked")
    [after] = stage.worker.query(TRANSACTIONS)

    assert stage.place.lines("looked") == ["False"]
    assert await result.wait(BOUND) < 5
    # The polls of worker and client, and what setting up the test has left to count.
    assert after["number"] - before["number"] < LOOKS / 1_000


@over_both_backends
async def test_worker_connects_with_its_first_abortable_task(
    worker: Worker, place: Place
) -> None:
    """A process has one connection, and none before its first abortable task.

    With our own result backend, the results of all tasks are stored over it, too.
    """
    # What this process itself keeps, for our result backend and for tests before.
    stop_agents()
    sync.close()
    slots = range(worker.concurrency)
    for _ in slots:
        worker.project.once.delay(str(place.folder))
    await place.reached("body", times=len(slots))
    for _ in slots:
        worker.project.gated.delay(str(place.folder))
    await place.reached("body", times=2 * len(slots))
    connections = worker.connections()
    place.open("end")

    # The one plain task before was one process's.
    assert len(worker.first_connections) == (1 if worker.stores_as_ours else 0)
    assert len(connections) == worker.processes


@pytest.mark.parametrize(
    "worker",
    [
        *("prefork-notified", "prefork-polling", "threads-polling", "solo-polling"),
        *("prefork-notified-ours", "threads-polling-ours"),
    ],
    indirect=True,
)
async def test_idle_worker_asks_nothing(worker: Worker, place: Place) -> None:
    """Without a task to watch over, no statement is sent for several polls."""
    worker.project.once.delay(str(place.folder))
    await place.reached("body")
    # The longest that a poll may be away, twice; after the end comes one more look.
    quiet = worker.poll_interval * 1.2 * 2
    samples: list[tuple[float, object]] = []

    def is_quiet() -> bool:
        now = time.perf_counter()
        latest = worker.connections()
        if not samples or samples[0][1] != latest:
            samples[:] = [(now, latest)]
        return now - samples[0][0] > quiet

    await until(is_quiet)
    assert len(worker.connections()) >= 1
