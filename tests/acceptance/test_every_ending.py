"""However a task ends that was asked to stop, an outcome is recorded, and no wait hangs.

Neither is for a task that comes after it in a chain, and does not run.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from celery import chain
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from aioabort import AbortClient, WaitTimeout
from tests.support.waiting import BOUND

from .conftest import OURS, StartWorker, follow_log
from .harness import Place, Stage, Worker

#: These take the process along, and only an abortable task's request class records it.
OF_THE_PROCESS = {"exit", "exit_at_once", "be_killed", "exceed_the_hard_limit"}
#: Celery does not end the chain of a plain task that ends so, and no task has failed.
IN_SILENCE = {"ignore", "ignore_after_progress", "ignore_after_an_end", "reject"}

ASKED = ("itself", "the chain", "the next", "the next of a plain task")


@dataclass(frozen=True)
class Case:
    """A way to end, and the way in which the task or its follower is asked to stop."""

    way: str
    asked: str
    looks: bool

    @property
    def is_possible(self) -> bool:
        """Whether the task that looks is asked, and its end is ours to know."""
        if self.asked == "the next of a plain task" and self.way == "stop":
            return False
        if self.asked == "the next of a plain task":
            return not self.looks and self.way not in OF_THE_PROCESS | IN_SILENCE
        return self.asked != "the next" or not self.looks


def cases(ways: Iterable[str]) -> st.SearchStrategy[list[Case]]:
    """Draw four cases."""
    case = st.builds(
        Case, st.sampled_from(sorted(ways)), st.sampled_from(ASKED), st.booleans()
    )
    possible = case.filter(lambda case: case.is_possible)
    return st.lists(possible, min_size=4, max_size=4, unique=True)


@pytest.fixture(scope="module")
def ending_workers(start_worker: StartWorker) -> Callable[[str], Worker]:
    """A worker for each result backend."""

    @cache
    def worker(backend: str) -> Worker:
        return start_worker(
            "prefork",
            backend=backend,
            worker_concurrency=4,
            aioabort_poll_interval=0.2,
        )

    return worker


@pytest.fixture(params=["db+postgresql+psycopg", OURS])
def worker(
    request: pytest.FixtureRequest, ending_workers: Callable[[str], Worker]
) -> Worker:
    """The worker with that result backend."""
    worker = ending_workers(request.param)
    follow_log(request, worker)
    return worker


async def end(stage: Stage, case: Case) -> None:
    """Have the task asked and ended; fail if anything stays open."""
    tasks, place = stage.tasks, str(stage.place.folder)
    if case.asked == "the next of a plain task":
        first = tasks.in_ways.plain_ending.si(place, case.way)
    else:
        first = tasks.in_ways.ending.si(place, case.way, case.looks)
    if case.way == "exceed_the_hard_limit":
        first.set(time_limit=tasks.ways_to_end.HARD_LIMIT)
    last: Any = await stage.client.send(
        chain(first, tasks.in_endings.passing.si(place, "after"))
    )
    await stage.place.reached("body")
    if case.asked == "the chain":
        # Both: the result of a chain is that of its last task.
        receipt = await last.abort(reason="enough")
        asked = [last.parent.id, last.id]
        assert [each.task_id for each in (*receipt.before, receipt)] == asked
    else:
        asked = [last.parent.id if case.asked == "itself" else last.id]
        [receipt] = await stage.client.abort(asked, reason="enough")
    assert receipt.answer == "requested"
    stage.place.open("end")

    for task_id in asked:
        result = stage.client.result(task_id)
        assert (await stage.settled(result)).outcome is not None
        # A client raises what the task has raised.
        with suppress(Exception, SystemExit):
            try:
                await result.wait(BOUND)
            except WaitTimeout:
                pytest.fail(f"{case}: the wait for {task_id} hangs")


def test_every_ending_of_a_task_that_was_asked(worker: Worker, tmp_path: Path) -> None:
    """Ways to end times ways to be asked, four at a time."""
    numbers = iter(range(1_000))

    async def end_all(drawn: list[Case]) -> None:
        async with AbortClient(worker.app) as client:
            folder = tmp_path / str(next(numbers))
            folder.mkdir()
            stage = Stage(worker, client, Place(folder))
            scenes = [stage.scene(str(number)) for number in range(len(drawn))]
            async with asyncio.TaskGroup() as group:
                for scene, case in zip(scenes, drawn, strict=True):
                    group.create_task(end(scene, case))

    @settings(
        max_examples=10,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(worker.project.ways_to_end.WAYS))
    def end_them(drawn: list[Case]) -> None:
        asyncio.run(end_all(drawn))

    end_them()
