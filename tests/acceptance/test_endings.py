"""How an abort ends a task, for everything in Celery that waits for it.

Each cell of the table runs with results in PostgreSQL and in Redis, and none may hang.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import uuid4

import pytest
from celery import Signature, chain, chord, group
from celery.events.state import State
from celery.exceptions import ChordError
from celery.result import ResultBase

from aioabort import TaskAborted
from tests.support.databases import NewDatabase, query
from tests.support.waiting import BOUND, until

from .conftest import OURS, StartWorker, follow_log
from .harness import Stage, Worker


@pytest.fixture(scope="session")
def ending_workers(
    request: pytest.FixtureRequest,
    start_worker: StartWorker,
    new_database: NewDatabase,
) -> Iterator[Callable[[str], Worker]]:
    """Workers that tell all there is to tell, by where their results are."""
    telling = {"result_extended": True, "worker_send_task_events": True}
    with new_database() as dsn:

        @cache
        def worker(results: str) -> Worker:
            if results == "postgresql":
                return start_worker("prefork", aioabort_poll_interval=0.2, **telling)
            if results == "aioabort":
                return start_worker(
                    "prefork", backend=OURS, aioabort_poll_interval=0.2, **telling
                )
            url, options = request.getfixturevalue("in_redis")
            query(dsn, "DROP TABLE celery_taskmeta, celery_tasksetmeta")
            return start_worker(
                "prefork",
                dsn,
                aioabort_dsn=dsn,
                result_backend=url,
                result_backend_transport_options=options,
                **telling,
            )

        yield worker


@pytest.fixture(params=["postgresql"])
def worker(
    request: pytest.FixtureRequest, ending_workers: Callable[[str], Worker]
) -> Worker:
    """The worker whose results are in PostgreSQL, unless a test asks for the other."""
    worker = ending_workers(request.param)
    follow_log(request, worker)
    return worker


in_all = pytest.mark.parametrize(
    "worker", ["postgresql", "aioabort", "redis"], indirect=True
)

#: Makes a part of a workflow: ``part("stopping", "a")``; its id ends with the name.
Part = Callable[[str, str], Signature]


@dataclass(frozen=True)
class Cell:
    """A workflow with a part that is aborted, and what becomes of the other parts."""

    name: str
    build: Callable[[Part], Signature]
    #: The abort comes when these parts run.
    running: str
    aborted: str
    #: The states in the end.
    states: dict[str, str]


#: Of a part that aioabort ends, and some versions of Celery end once more.
EITHER = "REVOKED or FAILURE"


CELLS = [
    Cell(
        "single",
        lambda part: part("stopping", "a"),
        running="a",
        aborted="a",
        states={"a": "REVOKED"},
    ),
    Cell(
        "chain, head",
        lambda part: chain(
            part("stopping", "a"), part("passing", "b"), part("passing", "c")
        ),
        running="a",
        aborted="a",
        states={"a": "REVOKED", "b": "REVOKED", "c": "REVOKED"},
    ),
    Cell(
        "chain, middle, while the head runs",
        lambda part: chain(
            part("gated", "a"), part("passing", "b"), part("passing", "c")
        ),
        running="a",
        aborted="b",
        states={"a": "SUCCESS", "b": "REVOKED", "c": "REVOKED"},
    ),
    Cell(
        "chain, tail, while the head runs",
        lambda part: chain(part("gated", "a"), part("passing", "b")),
        running="a",
        aborted="b",
        states={"a": "SUCCESS", "b": "REVOKED"},
    ),
    Cell(
        "group",
        lambda part: group(part("stopping", "a"), part("passing", "b")),
        running="ab",
        aborted="a",
        states={"a": "REVOKED", "b": "SUCCESS"},
    ),
    Cell(
        "chord, header",
        lambda part: chord(
            [part("stopping", "a"), part("passing", "b")], part("passing", "c")
        ),
        running="ab",
        aborted="a",
        states={"a": "REVOKED", "b": "SUCCESS", "c": "FAILURE"},
    ),
    Cell(
        "chord, body, while the header runs",
        lambda part: chord(
            [part("gated", "a"), part("passing", "b")], part("passing", "c")
        ),
        running="ab",
        aborted="c",
        states={"a": "SUCCESS", "b": "SUCCESS", "c": "REVOKED"},
    ),
    Cell(
        "chord of a chain, head",
        lambda part: chord(
            [chain(part("stopping", "a"), part("passing", "b")), part("passing", "c")],
            part("passing", "d"),
        ),
        running="ac",
        aborted="a",
        states={"a": "REVOKED", "b": "REVOKED", "c": "SUCCESS", "d": "FAILURE"},
    ),
    Cell(
        "chord of a chain, tail",
        lambda part: chord(
            [chain(part("gated", "a"), part("passing", "b")), part("passing", "c")],
            part("passing", "d"),
        ),
        running="ac",
        aborted="b",
        states={"a": "SUCCESS", "b": "REVOKED", "c": "SUCCESS", "d": "FAILURE"},
    ),
    Cell(
        "nested chord",
        lambda part: chord(
            [
                chord(
                    [part("stopping", "a"), part("passing", "b")], part("passing", "c")
                ),
                part("passing", "d"),
            ],
            part("passing", "e"),
        ),
        running="abd",
        aborted="a",
        states={
            "a": "REVOKED",
            "b": "SUCCESS",
            "c": "FAILURE",
            "d": "SUCCESS",
            "e": "FAILURE",
        },
    ),
    Cell(
        "chain with a chord",
        lambda part: chain(
            chord([part("stopping", "a"), part("passing", "b")], part("passing", "c")),
            part("passing", "d"),
        ),
        running="ab",
        aborted="a",
        states={"a": "REVOKED", "b": "SUCCESS", "c": EITHER, "d": EITHER},
    ),
    Cell(
        "chord with a chain for a body",
        lambda part: chord(
            [part("stopping", "a"), part("passing", "b")],
            chain(part("passing", "c"), part("passing", "d")),
        ),
        running="ab",
        aborted="a",
        states={"a": "REVOKED", "b": "SUCCESS", "c": EITHER, "d": EITHER},
    ),
    Cell(
        "chord with a group for a body",
        lambda part: chord(
            [part("stopping", "a"), part("passing", "b")],
            group(part("passing", "c"), part("passing", "d")),
        ),
        running="ab",
        aborted="a",
        states={"a": "REVOKED", "b": "SUCCESS", "c": EITHER, "d": EITHER},
    ),
    Cell(
        "chain, then a group",
        lambda part: chain(
            part("stopping", "a"), group(part("passing", "b"), part("passing", "c"))
        ),
        running="a",
        aborted="a",
        states={"a": "REVOKED", "b": "REVOKED", "c": "REVOKED"},
    ),
    Cell(
        "chain, then a group, one of it while the head runs",
        lambda part: chain(
            part("gated", "a"), group(part("passing", "b"), part("passing", "c"))
        ),
        running="a",
        aborted="b",
        states={"a": "SUCCESS", "b": "REVOKED", "c": "SUCCESS"},
    ),
    Cell(
        "chain, then a chord and more",
        lambda part: chain(
            part("stopping", "a"),
            chord([part("passing", "b"), part("passing", "c")], part("passing", "d")),
            part("passing", "e"),
        ),
        running="a",
        aborted="a",
        states=dict.fromkeys("abcde", "REVOKED"),
    ),
    Cell(
        "chain, then a chord with a group for a body",
        lambda part: chain(
            part("stopping", "a"),
            chord(
                [part("passing", "b"), part("passing", "c")],
                group(part("passing", "d"), part("passing", "e")),
            ),
        ),
        running="a",
        aborted="a",
        states=dict.fromkeys("abcde", "REVOKED"),
    ),
    Cell(
        "chain, then a group of chains and chords",
        lambda part: chain(
            part("stopping", "a"),
            group(
                chain(part("passing", "b"), part("passing", "c")),
                chord([part("passing", "d"), part("passing", "e")], part("gated", "f")),
                group(part("passing", "g"), part("passing", "h")),
            ),
        ),
        running="a",
        aborted="a",
        states=dict.fromkeys("abcdefgh", "REVOKED"),
    ),
    Cell(
        "chain, then a chord of chains",
        lambda part: chain(
            part("stopping", "a"),
            chord(
                [
                    chain(part("passing", "b"), part("passing", "c")),
                    part("passing", "d"),
                ],
                part("passing", "e"),
            ),
        ),
        running="a",
        aborted="a",
        states=dict.fromkeys("abcde", "REVOKED"),
    ),
    Cell(
        "group of a chain, then a group",
        lambda part: group(
            chain(
                part("stopping", "a"),
                group(part("passing", "b"), part("passing", "c")),
            ),
            part("passing", "d"),
        ),
        running="ad",
        aborted="a",
        states={"a": "REVOKED", "b": "REVOKED", "c": "REVOKED", "d": "SUCCESS"},
    ),
    Cell(
        "chord of a chain, then a chord",
        lambda part: chord(
            [
                chain(
                    part("stopping", "a"),
                    chord(
                        [part("passing", "b"), part("passing", "c")],
                        part("passing", "d"),
                    ),
                ),
                part("passing", "e"),
            ],
            part("passing", "f"),
        ),
        running="ae",
        aborted="a",
        states={**dict.fromkeys("abcd", "REVOKED"), "e": "SUCCESS", "f": "FAILURE"},
    ),
    Cell(
        "chord of a chain, then a group",
        lambda part: chord(
            [
                chain(
                    part("stopping", "a"),
                    group(part("passing", "b"), part("passing", "c")),
                ),
                part("passing", "d"),
            ],
            part("passing", "e"),
        ),
        running="ad",
        aborted="a",
        states={**dict.fromkeys("abc", "REVOKED"), "d": "SUCCESS", "e": "FAILURE"},
    ),
]


def get(result: ResultBase, **options: Any) -> Any:
    """Call Celery's own ``get()``, for a bounded time.

    It blocks the test, as it has to be called where the task was sent: Celery's
    consumer of results in Redis belongs to a thread. So it is called when the worker has
    seen the abort: nothing is sent meanwhile, notifications neither.
    """
    return result.get(timeout=BOUND, interval=0.05, **options)


@in_all
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
async def test_workflow(stage: Stage, cell: Cell) -> None:
    """A wait for the workflow ends with the abort, and later tasks do not start.

    Closes: ``get()``, groups and chords that wait for ever; a chord's body that runs
    on the abort for a value; a chain's tail that stays PENDING.
    """
    app = stage.worker.app
    run = uuid4().hex

    def part(task: str, name: str) -> Signature:
        signature = getattr(stage.tasks.in_endings, task).si(
            str(stage.place.folder), name
        )
        return signature.set(task_id=f"{run}-{name}")

    workflow = cell.build(part).apply_async()
    for name in cell.running:
        await stage.place.reached(name)
    receipt = await stage.client.abort(f"{run}-{cell.aborted}", reason="enough")
    if cell.aborted in cell.running:
        await receipt.seen(BOUND)
    stage.place.open("end")

    with pytest.raises((TaskAborted, ChordError), match="enough"):
        get(workflow)
    for name, state in cell.states.items():
        result = app.AsyncResult(f"{run}-{name}")
        await until(lambda result=result, state=state: result.state in state)
        if state != "SUCCESS":
            assert (name in stage.place) == (name in cell.running)
    settled = await stage.settled(stage.client.result(f"{run}-{cell.aborted}"))
    assert settled.outcome == "aborted"


@in_all
async def test_group_without_propagation(stage: Stage) -> None:
    """``GroupResult.get(propagate=False)`` has the values and the abort."""
    place = str(stage.place.folder)
    tasks = stage.tasks.in_endings
    sent = group(tasks.stopping.s(place, "a"), tasks.passing.s(place, "b")).delay()
    await stage.place.reached("a")
    receipt = await stage.client.abort(sent.results[0].id, reason="enough")
    await receipt.seen(BOUND)

    error, value = get(sent, propagate=False)
    assert isinstance(error, TaskAborted)
    assert error.args == ("enough", None, sent.results[0].id)
    assert value == "b"
    assert sent.ready()
    assert sent.failed() is False


@in_all
@pytest.mark.parametrize("when", ["running", "queued"])
async def test_errbacks(stage: Stage, when: str) -> None:
    """``link_error`` is called, in the worker with the error, or as a task with the id."""
    place = str(stage.place.folder)
    tasks = stage.tasks.in_endings
    errbacks = [tasks.hear.s(place=place), tasks.hear_id.s(place=place)]
    sign = tasks.stopping.s(place, "a")
    if when == "running":
        sent = sign.apply_async(link_error=errbacks)
        await stage.place.reached("a")
        await stage.client.abort(sent.id, reason="enough")
    else:
        async with stage.occupied():
            sent = sign.apply_async(link_error=errbacks)
            await stage.client.abort(sent.id, reason="enough")

    await stage.place.reached("heard")
    await stage.place.reached("heard of")
    assert stage.place.lines("heard") == [f"Task '{sent.id}' was aborted: enough"]
    assert stage.place.lines("heard of") == [sent.id]


@in_all
async def test_ignored_result(stage: Stage) -> None:
    """A chain's head that stores no result still ends the chain."""
    place = str(stage.place.folder)
    tasks = stage.tasks.in_endings
    head = tasks.stopping.si(place, "a").set(ignore_result=True)
    sent = chain(head, tasks.passing.si(place, "b")).delay()
    await stage.place.reached("a")
    receipt = await stage.client.abort(sent.parent.id, reason="enough")
    await receipt.seen(BOUND)

    with pytest.raises(TaskAborted, match="enough"):
        get(sent)
    assert "b" not in stage.place


@in_all
async def test_handlers_and_signals(stage: Stage) -> None:
    """No failure is told of, to Sentry neither, but the end is; and the abort is."""
    result = await stage.start(stage.tasks.in_endings.telling)
    await result.abort(reason="enough", requested_by="ann")
    await stage.settled(result)
    await stage.place.reached("task_aborted")

    told = f"Task '{result.id}' was aborted by ann: enough"
    assert stage.place.lines("after_return") == [f"REVOKED {told}"]
    assert stage.place.lines("task_postrun") == ["IGNORED"]
    assert "on_failure" not in stage.place
    assert "task_failure" not in stage.place
    assert stage.place.lines("task_aborted") == [
        f"endings.telling {result.id} {result.id} enough ann aborted"
    ]
    line = f"task endings.telling[{result.id}] was asked to stop by 'ann': 'enough';"
    assert stage.worker.log.read_text().count(f"{line} its outcome is aborted") == 1


@pytest.mark.parametrize("outcome", ["returned", "failed"])
async def test_signal_of_another_outcome(stage: Stage, outcome: str) -> None:
    """``task_aborted`` tells how a task ended that was asked to stop."""
    result = await stage.start(stage.tasks.in_endings.telling, outcome)
    await result.abort(reason="enough", requested_by="ann")
    assert (await stage.settled(result)).outcome == outcome

    await stage.place.reached("task_aborted")
    assert stage.place.lines("task_aborted") == [
        f"endings.telling {result.id} {result.id} enough ann {outcome}"
    ]
    failures = ["stopped in the middle"] if outcome == "failed" else []
    assert stage.place.lines("on_failure") == failures
    assert stage.place.lines("task_failure") == failures


@in_all
async def test_expected_exceptions(stage: Stage) -> None:
    """An abort is none of the errors that ``throws`` announces."""
    result = await stage.start(stage.tasks.in_endings.throwing)
    receipt = await result.abort(reason="enough")
    await receipt.seen(BOUND)

    celerys = stage.worker.app.AsyncResult(result.id)
    with pytest.raises(TaskAborted, match="enough"):
        get(celerys)
    assert celerys.state == "REVOKED"


@in_all
async def test_retry_of_an_aborted_task(stage: Stage) -> None:
    """``self.retry()`` ends it; no further attempt is sent."""
    result = await stage.start(stage.tasks.retrying, 0)
    receipt = await result.abort(reason="enough")
    # The process knows of the abort when it retries, or the further attempt does.
    stage.place.open("retry")
    await receipt.seen(BOUND)

    celerys = stage.worker.app.AsyncResult(result.id)
    with pytest.raises(TaskAborted, match="enough"):
        get(celerys)
    assert (await stage.settled(result)).outcome == "aborted"
    assert len(stage.place.lines("body")) == 1


async def test_progress_of_an_aborted_task(stage: Stage) -> None:
    """``update_state()`` does not hide that the task is being aborted."""
    result = await stage.start(stage.tasks.in_endings.reporting)
    await result.abort(reason="enough")
    await stage.place.reached("reported")

    row = stage.row(result)
    assert row is not None
    assert row["status"] == "ABORTED"
    stage.place.open("end")
    with pytest.raises(TaskAborted):
        await result.wait(BOUND)


async def test_extended_result(stage: Stage) -> None:
    """With ``result_extended``, the row tells what the task was."""
    result = await stage.start(stage.tasks.in_endings.throwing)
    await result.abort(reason="enough")
    await stage.settled(result)

    row = stage.row(result)
    assert row is not None
    assert (row["status"], row["name"]) == ("REVOKED", "endings.throwing")
    assert str(stage.place.folder) in bytes(row["args"]).decode()
    assert row["traceback"] is None
    assert row["date_done"] is not None


@pytest.mark.parametrize("when", ["running", "queued"])
async def test_events(stage: Stage, when: str) -> None:
    """Flower and other monitors show the task as REVOKED."""
    app = stage.worker.app
    state = State()
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": state.event})
        with receiver.consumer_context() as (drained, *_):
            if when == "running":
                result = await stage.start(stage.tasks.in_endings.throwing)
                await result.abort(reason="enough")
            else:
                async with stage.occupied():
                    result = stage.publish(stage.tasks.in_endings.throwing)
                    await result.abort(reason="enough")
            await stage.settled(result)

            def is_revoked() -> bool:
                with suppress(TimeoutError):
                    drained.drain_events(timeout=0.05)
                task = state.tasks.get(result.id)
                return task is not None and task.state == "REVOKED"

            await until(is_revoked)
    task = state.tasks[result.id]
    assert task.revoked is not None
    assert task.failed is None
