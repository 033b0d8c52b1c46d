"""A soft time limit that arrives while our result backend stores.

The limit is an exception that a signal raises wherever the child is: here, where it waits
for the statement that its agent runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest
from billiard.exceptions import SoftTimeLimitExceeded

from tests.support.waiting import BOUND, until

from .harness import Stage, Worker

pytestmark = pytest.mark.parametrize("worker", ["prefork-notified-ours"], indirect=True)

#: Seconds; enough for what comes before the statement that it interrupts.
LIMIT = 2

#: The statements that are awaited after the limit; each waits 50 ms for the lock.
LATER_STATEMENTS = 5

WAITING = """
    SELECT pid, query_start FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


@contextmanager
def locking(worker: Worker, statement: str, task_id: str) -> Iterator[None]:
    """Have each store of the task's state wait until the block ends."""
    with psycopg.connect(worker.dsn) as connection:
        connection.execute(statement.encode(), [task_id])
        yield
        connection.rollback()


def waiting(worker: Worker) -> list[tuple[int, object]]:
    """Return the connections that wait for a lock, and since when."""
    return [(row["pid"], row["query_start"]) for row in worker.query(WAITING)]


async def interrupted(worker: Worker) -> int:
    """Return the child's connection when the limit has interrupted its statement.

    child: stores, waits for the lock again and again | limit: raised in it | FAILURE is
    stored, by the child or, with an older Celery, by the main process: waits
    """

    def limits() -> int:
        return worker.log.read_text().count("Soft time limit")

    before = limits()
    await until(lambda: waiting(worker))
    await until(lambda: limits() > before)
    # The signal interrupts the child at once, wherever it waits: after some more
    # statements, it has left the first store.
    begun: set[object] = set()
    while len(begun) < LATER_STATEMENTS:
        [(connection, begun_at)] = await until(lambda: waiting(worker))
        begun.add(begun_at)
    return connection


async def assert_all_works(stage: Stage, connection: int) -> None:
    """Every child runs a task, and the connection is the one that it was."""
    slots = range(stage.worker.concurrency)
    scenes = [stage.scene(str(slot)) for slot in slots]
    results = [await scene.start(stage.tasks.gated) for scene in scenes]
    for scene, result in zip(scenes, results, strict=True):
        scene.place.open("end")
        assert await result.wait(BOUND) == "done"
    assert connection in {row["pid"] for row in stage.worker.connections()}


async def test_limit_while_a_result_is_stored(stage: Stage) -> None:
    """The task fails by its limit, its request is settled, and the next ones work."""
    result = await stage.start(stage.tasks.gated, soft_time_limit=LIMIT)
    await result.abort()
    lock = "SELECT FROM celery_taskmeta WHERE task_id = %s FOR UPDATE"
    with locking(stage.worker, lock, result.id):
        stage.place.open("end")
        connection = await interrupted(stage.worker)

    with pytest.raises(SoftTimeLimitExceeded):
        await result.wait(BOUND)
    assert (await stage.settled(result)).outcome == "too_late"
    await assert_all_works(stage, connection)


async def test_limit_while_the_start_is_stored(stage: Stage) -> None:
    """The task fails before its body, and the next ones work."""
    task_id = str(uuid4())
    lock = "INSERT INTO celery_taskmeta (id, task_id) VALUES (-1, %s)"
    with locking(stage.worker, lock, task_id):
        result = stage.publish(
            stage.tasks.gated, task_id=task_id, soft_time_limit=LIMIT
        )
        connection = await interrupted(stage.worker)

    with pytest.raises(SoftTimeLimitExceeded):
        await result.wait(BOUND)
    assert "body" not in stage.place
    await assert_all_works(stage, connection)
