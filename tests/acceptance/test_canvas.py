"""One abort ends all of a workflow, wherever it is at that moment."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from celery import Signature, chain, chord, group
from celery.result import GroupResult, result_from_tuple

from aioabort import TaskAborted
from tests.support.waiting import BOUND

from .harness import Stage

pytestmark = pytest.mark.parametrize(
    "worker", ["prefork-notified", "prefork-notified-ours"], indirect=True
)

#: Makes a part of a workflow: ``part("stopping", "a")``.
Part = Callable[[str, str], Signature]


@dataclass(frozen=True)
class Workflow:
    """A workflow, and where it is when it is aborted."""

    name: str
    build: Callable[[Part], Signature]
    #: The abort comes when these parts run, or have run.
    reached: str


WORKFLOWS = [
    Workflow(
        "chain, first link runs",
        lambda part: chain(
            part("stopping", "a"), part("passing", "b"), part("passing", "c")
        ),
        reached="a",
    ),
    Workflow(
        "chain, second link runs",
        lambda part: chain(
            part("passing", "a"), part("stopping", "b"), part("passing", "c")
        ),
        reached="ab",
    ),
    Workflow(
        "chord, header runs",
        lambda part: chord(
            [part("stopping", "a"), part("stopping", "b")], part("passing", "c")
        ),
        reached="ab",
    ),
    Workflow(
        "chord of chains, header runs",
        lambda part: chord(
            [
                chain(part("stopping", "a"), part("passing", "x")),
                chain(part("passing", "b"), part("passing", "c")),
            ],
            part("passing", "y"),
        ),
        reached="abc",
    ),
    Workflow(
        "chord, first of the body runs",
        lambda part: chord(
            [part("passing", "a"), part("passing", "b")],
            chain(part("stopping", "c"), part("passing", "d")),
        ),
        reached="abc",
    ),
    Workflow(
        "group before a chain, the chain runs",
        lambda part: (
            group(part("passing", "a"), part("passing", "b"))
            | part("stopping", "c")
            | part("passing", "d")
        ),
        reached="abc",
    ),
    Workflow(
        "chain before a chord, first link runs",
        lambda part: chain(
            part("stopping", "a"),
            chord([part("passing", "b")], part("passing", "c")),
            part("passing", "d"),
        ),
        reached="a",
    ),
]


def make_part(stage: Stage) -> Part:
    """Return what makes the parts of a workflow that leaves its marks at *stage*."""

    def part(task: str, name: str) -> Signature:
        tasks = stage.tasks.in_endings
        made: Signature = getattr(tasks, task).si(str(stage.place.folder), name)
        return made

    return part


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
async def test_all_of_a_workflow_is_aborted(stage: Stage, workflow: Workflow) -> None:
    """What runs stops, what was to come never begins, and who waits hears of it."""
    result: Any = await stage.client.send(workflow.build(make_part(stage)))
    for name in workflow.reached:
        await stage.place.reached(name)

    receipt = await result.abort(reason="enough", requested_by="ann")

    with pytest.raises(TaskAborted, match="by ann: enough"):
        await result.wait(BOUND)
    for each in [*receipt.before, receipt]:
        if each.answer == "finished":
            assert (
                await stage.client.snapshot(each.task_id)
            ).result in workflow.reached
    begun = {mark.name for mark in stage.place.folder.iterdir() if len(mark.name) == 1}
    assert begun == set(workflow.reached)


async def test_the_link_that_is_published_meanwhile_does_not_begin(
    stage: Stage,
) -> None:
    """A link that never looks publishes the next one after the abort.

    a runs | abort: a, b and c are asked | a returns, publishes b | b: asked before
    """
    part = make_part(stage)
    result: Any = await stage.client.send(
        chain(part("gated", "a"), part("passing", "b"), part("passing", "c"))
    )
    await stage.place.reached("a")
    receipt = await result.abort(reason="enough")
    stage.place.open("end")

    with pytest.raises(TaskAborted, match="enough"):
        await result.wait(BOUND)
    a, b = receipt.before
    assert (await stage.settled(stage.client.result(a.task_id))).outcome == "too_late"
    assert (await stage.settled(stage.client.result(b.task_id))).outcome == "aborted"
    assert (await stage.client.snapshot(a.task_id)).state == "SUCCESS"
    assert "b" not in stage.place
    assert "c" not in stage.place


async def test_the_link_that_was_published_just_before_does_not_begin(
    stage: Stage,
) -> None:
    """A link ends and publishes the next one before the abort, which waits in a queue.

    a returns, publishes b | abort: b and c are asked | b is delivered: asked before
    """
    part = make_part(stage)
    async with stage.occupied():
        result: Any = await stage.client.send(
            chain(part("passing", "b"), part("passing", "c"))
        )
        receipt = await result.abort(reason="enough")
    assert [each.answer for each in receipt.before] == ["requested"]

    with pytest.raises(TaskAborted, match="enough"):
        await result.wait(BOUND)
    assert "b" not in stage.place
    assert "c" not in stage.place


@pytest.mark.parametrize("way", ["sent", "saved", "tuple"])
async def test_all_of_a_group_is_aborted(stage: Stage, way: str) -> None:
    """Each member, and each link of a chain in it, also of results that are restored."""
    part = make_part(stage)
    sent = await stage.client.send(
        group(chain(part("stopping", "a"), part("passing", "b")), part("stopping", "c"))
    )
    app = stage.worker.app
    await stage.place.reached("a")
    await stage.place.reached("c")
    members: Any = sent
    if way == "saved":
        sent.save()
        members = GroupResult.restore(sent.id, app=app)
    elif way == "tuple":
        members = result_from_tuple(sent.as_tuple(), app)

    receipts = await stage.client.abort(members, reason="enough")

    assert [receipt.task_id for receipt in receipts] == [each.id for each in sent]
    assert all(receipt.is_requested for receipt in receipts)
    for member in sent:
        with pytest.raises(TaskAborted, match="enough"):
            await stage.client.result(member.id).wait(BOUND)
    assert "b" not in stage.place


async def test_of_a_replacement_only_the_last_task_is_known(stage: Stage) -> None:
    """A task that has replaced itself goes on under its id in the last task of two.

    The first of them runs to its end, as no result has its id; the one that
    has the id does not begin.
    """
    result = await stage.client.send(
        stage.tasks.in_endings.replacing.s(str(stage.place.folder))
    )
    await stage.place.reached("x")
    await result.abort(reason="enough")
    stage.place.open("end")

    with pytest.raises(TaskAborted, match="enough"):
        await result.wait(BOUND)
    assert "y" not in stage.place


async def test_what_a_task_has_sent_is_its_own_business(stage: Stage) -> None:
    """A task that was sent by the aborted one is no part of the workflow."""
    result = await stage.client.send(
        stage.tasks.in_endings.spawning.s(str(stage.place.folder))
    )
    await stage.place.reached("x")
    await result.abort(reason="enough")
    with pytest.raises(TaskAborted, match="enough"):
        await result.wait(BOUND)

    [child] = stage.place.lines("child")
    assert (await stage.client.snapshot(child)).request is None
    stage.place.open("end")
    assert await stage.client.result(child).wait(BOUND) == "x"


async def test_mapping_stops_between_two_items(stage: Stage) -> None:
    """Of each part of ``chunks()``, the item that returns after the abort is the last."""
    a, b, c, d = scenes = [stage.scene(name) for name in "abcd"]
    items = [(str(scene.place.folder),) for scene in scenes]
    parts = stage.tasks.returning.chunks(items, 2).group().apply_async()
    for scene in a, c:
        await scene.place.reached("body")
    await stage.client.abort([part.id for part in parts], reason="enough")

    for part in parts:
        await stage.aborted(stage.client.result(part.id))
    assert "body" not in b.place
    assert "body" not in d.place
