"""Two apps in one database."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aioabort import AbortClient, TaskAborted
from tests.support.databases import query
from tests.support.waiting import BOUND

from .conftest import StartWorker
from .harness import Place, Stage, Worker

pytestmark = pytest.mark.parametrize("worker", ["solo-notified"], indirect=True)


@pytest.fixture(scope="module")
def dsn_of_both(workers: Callable[[str], Worker]) -> str:
    """The database of the first app."""
    return workers("solo-notified").dsn


@pytest.fixture(scope="module")
def neighbour(dsn_of_both: str, start_worker: StartWorker) -> Worker:
    """A worker of another app, which shares the tables of the first."""
    return start_worker("solo", dsn_of_both)


@pytest.fixture(scope="module")
def stranger(dsn_of_both: str, start_worker: StartWorker) -> Worker:
    """A worker of another app, which keeps its results under another name."""
    # Celery 5.7 cannot create it: its index has the name of the first table's.
    query(
        dsn_of_both, "CREATE TABLE other_taskmeta (LIKE celery_taskmeta INCLUDING ALL)"
    )
    return start_worker(
        "solo", dsn_of_both, database_table_names={"task": "other_taskmeta"}
    )


@pytest.fixture(scope="module")
def foreigner(dsn_of_both: str, start_worker: StartWorker) -> Worker:
    """A worker of another app, which keeps its results in another schema."""
    query(dsn_of_both, "CREATE SCHEMA other")
    schemas = {"task": "other", "group": "other"}
    return start_worker("solo", dsn_of_both, database_table_schemas=schemas)


def stage_of(worker: Worker, client: AbortClient, folder: Path) -> Stage:
    folder.mkdir()
    return Stage(worker, client, Place(folder))


def states(worker: Worker, table: str, task_id: str) -> list[dict[str, Any]]:
    statement = f"SELECT status FROM {table} WHERE task_id = %s"
    return worker.query(statement, task_id)


async def test_apps_that_share_tables(
    stage: Stage, neighbour: Worker, tmp_path: Path
) -> None:
    """An abort stops the task it names and leaves the other app's task alone."""
    async with AbortClient(neighbour.app) as client:
        other_stage = stage_of(neighbour, client, tmp_path / "other")
        ours = await stage.start(stage.tasks.gated)
        other = await other_stage.start(neighbour.project.raising)
        await other.abort()
        with pytest.raises(TaskAborted):
            await other.wait(BOUND)

    assert (await ours.snapshot()).request is None
    stage.place.open("end")
    assert await ours.wait(BOUND) == "done"
    # The tables are the same, so any client may ask.
    assert await stage.client.is_aborted(other.id)


async def test_apps_with_tables_of_their_own(
    stage: Stage, stranger: Worker, tmp_path: Path
) -> None:
    """Each app's states are in its own table."""
    async with AbortClient(stranger.app) as client:
        other_stage = stage_of(stranger, client, tmp_path / "other")
        ours = await stage.start(stage.tasks.gated)
        other = await other_stage.start(stranger.project.raising)
        await other.abort()
        with pytest.raises(TaskAborted):
            await other.wait(BOUND)
        assert (await other_stage.settled(other)).outcome == "aborted"

    stage.place.open("end")
    assert await ours.wait(BOUND) == "done"
    assert states(stranger, "other_taskmeta", other.id) == [{"status": "REVOKED"}]
    assert states(stranger, "celery_taskmeta", other.id) == []
    assert states(stranger, "celery_taskmeta", ours.id) == [{"status": "SUCCESS"}]
    assert states(stranger, "other_taskmeta", ours.id) == []


async def test_apps_with_schemas_of_their_own(
    stage: Stage, foreigner: Worker, tmp_path: Path
) -> None:
    """Even the same id is another task there, whose abort stops no task here."""
    async with AbortClient(foreigner.app) as client:
        other_stage = stage_of(foreigner, client, tmp_path / "other")
        ours = await stage.start(stage.tasks.overwriting, task_id="nightly")
        other = await other_stage.start(foreigner.project.raising, task_id="nightly")
        await other.abort()
        with pytest.raises(TaskAborted):
            await other.wait(BOUND)
        assert (await other_stage.settled(other)).outcome == "aborted"

    assert not await ours.is_aborted()
    assert states(foreigner, "other.celery_taskmeta", "nightly") == [
        {"status": "REVOKED"}
    ]
    await ours.abort()
    stage.place.open("overwrite")
    stage.place.open("look")
    assert await ours.wait(BOUND) == "stopped"
