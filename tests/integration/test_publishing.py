"""What the client publishes, and the results that it hands back.

There is no worker here: what was published is read from the messages.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from anyio import fail_after
from celery import Celery, chain, chord, group, signals
from celery.result import GroupResult, ResultBase, ResultSet

from aioabort import (
    AbortableAsyncResult,
    AbortableTask,
    AbortClient,
    AioabortError,
)

Step = Callable[..., Any]

#: Canvases of five steps at most, by what Celery makes of them.
CANVASES: dict[str, Callable[[Step], Any]] = {
    "signature": lambda s: s(1),
    "chain": lambda s: chain(s(1), s(2), s(3)),
    "group": lambda s: group(s(1), s(2)),
    "chord": lambda s: chord([s(1), s(2)], s(3)),
    "group before a chain": lambda s: group(s(1), s(2)) | s(3) | s(4),
    "chord whose body is a chain": lambda s: chord([s(1)], chain(s(2), s(3), s(4))),
    "chord whose body is a group": lambda s: chord([s(1)], group(s(2), s(3))),
    "chord whose body is a chord": lambda s: chord([s(1)], chord([s(2)], s(3))),
    "chord of chains": lambda s: chord([chain(s(1), s(2)), s(3)], s(4)),
    "group of chains": lambda s: group(chain(s(1), s(2)), s(3)),
    "group of chords": lambda s: group(chord([s(1)], chain(s(2), s(3))), s(4)),
    "chain to a group": lambda s: chain(s(1), group(s(2), s(3))),
    "chain of groups": lambda s: chain(s(1), group(s(2), s(3)), s(4), s(5)),
}


@pytest.fixture
def step(app: Celery) -> Step:
    """Makes signatures of a task that no worker runs."""

    @app.task(base=AbortableTask, shared=False, name="step")
    def step(number: int) -> int:
        return number

    signature: Step = step.si
    return signature


@pytest.fixture
def published() -> Iterator[set[str]]:
    """The ids of all steps that are published, or will be when others have ended."""
    ids: set[str] = set()

    def read(headers: Any, body: Any, **_: object) -> None:
        if headers["task"] == "step":
            ids.add(headers["id"])
        ids.update(ids_in(body[2]))

    signals.before_task_publish.connect(read, weak=False)
    yield ids
    signals.before_task_publish.disconnect(read)


def ids_in(message: Any) -> Iterator[str]:
    """Yield the ids of the steps that *message* consists of."""
    if isinstance(message, dict):
        if message.get("task") == "step":
            yield message["options"]["task_id"]
        message = list(message.values())
    if isinstance(message, list | tuple):
        for part in message:
            yield from ids_in(part)


def tree(result: ResultBase | None) -> Iterator[Any]:
    """Yield the results of all tasks that *result* consists of."""
    if result is None:
        return
    yield from tree(result.parent)
    if isinstance(result, ResultSet):
        for member in result:
            yield from tree(member)
    else:
        yield result


@pytest.mark.parametrize("canvas", CANVASES.values(), ids=CANVASES)
@pytest.mark.parametrize("verb", ["send", "apply_async"])
async def test_every_task_of_a_canvas_is_in_its_result(
    client: AbortClient,
    step: Step,
    published: set[str],
    canvas: Callable[[Step], Any],
    verb: str,
) -> None:
    """From the result, all tasks are reached, and each is bound to the client."""
    made = canvas(step)
    # Twice: to send a canvas must not leave its ids behind in it.
    for _ in range(2):
        published.clear()
        result = await getattr(client, verb)(made)
        nodes = list(tree(result))
        assert sorted(node.id for node in nodes) == sorted(published)
        assert {type(node) for node in nodes} == {AbortableAsyncResult}
        assert {node._client for node in nodes} == {client}


async def test_results_are_as_celery_makes_them(
    client: AbortClient, step: Step
) -> None:
    """A group is a GroupResult; a chain is its last link, a chord its body."""
    members = await client.send(group(step(1), step(2)))
    assert isinstance(members, GroupResult)
    assert len(members) == 2
    last = await client.send(chain(step(1), step(2)))
    assert last.parent is not None
    assert last.parent.parent is None
    body = await client.send(chord([step(1), step(2)], step(3)))
    assert isinstance(body.parent, GroupResult)


async def test_arguments_and_options_are_celerys(
    app: Celery, client: AbortClient
) -> None:
    """``send()`` takes arguments as ``delay()``; ``apply_async()`` takes options, too."""
    messages: list[Any] = []

    def read(headers: Any, body: Any, routing_key: str, **_: object) -> None:
        messages.append((tuple(body[0]), body[1], headers["id"], routing_key))

    @app.task(base=AbortableTask, shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    signals.before_task_publish.connect(read, weak=False)
    try:
        await client.send(add, 1, y=2)
        await client.send(add.s(y=2), 1)
        await client.apply_async(add, (1,), {"y": 2}, queue="slow", task_id="id")
        await add.adelay(1, y=2)
        await add.aapply_async((1,), {"y": 2}, queue="slow", task_id="id")
    finally:
        signals.before_task_publish.disconnect(read)
    assert [message[:2] for message in messages] == [((1,), {"y": 2})] * 5
    assert messages[2][2:] == messages[4][2:] == ("id", "slow")


async def test_the_loop_goes_on_while_the_broker_is_slow(
    app: Celery, client: AbortClient, step: Step
) -> None:
    """Publishing waits for something that only the loop can bring about."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[None] = asyncio.Queue()
    went_on = threading.Event()

    def be_slow(**_: object) -> None:
        loop.call_soon_threadsafe(arrived.put_nowait, None)
        assert went_on.wait(10)

    task = app.tasks["step"]
    signals.before_task_publish.connect(be_slow, weak=False)
    try:
        async with asyncio.TaskGroup() as publishing:
            publishing.create_task(client.send(step(1)))
            publishing.create_task(client.apply_async(group(step(1))))
            publishing.create_task(task.adelay(1))
            publishing.create_task(task.aapply_async((1,)))
            with fail_after(10):
                for _ in range(4):
                    await arrived.get()
            went_on.set()
    finally:
        went_on.set()
        signals.before_task_publish.disconnect(be_slow)


async def test_many_publish_at_once(client: AbortClient, step: Step) -> None:
    """A thousand sends share a few threads, and none is lost."""
    with fail_after(30):
        results = await asyncio.gather(*(client.send(step(n)) for n in range(1000)))
    assert len({result.id for result in results}) == 1000
    assert threading.active_count() < 50


@pytest.mark.parametrize("what", [None, "step", 7, lambda: None])
async def test_what_cannot_be_sent_is_named(client: AbortClient, what: object) -> None:
    """Neither a name nor a function is a task."""
    send: Any = client.send
    with pytest.raises(TypeError, match="can be sent, not"):
        await send(what)


@pytest.mark.parametrize("canvas", CANVASES.values(), ids=CANVASES)
async def test_nothing_runs_eagerly(
    app: Celery, client: AbortClient, step: Step, canvas: Callable[[Step], Any]
) -> None:
    """With task_always_eager there is an error, and no task has run."""
    ran: list[object] = []
    app.conf.task_always_eager = True
    app.tasks["step"].run = ran.append
    with pytest.raises(AioabortError, match="task_always_eager"):
        await client.send(canvas(step))
    assert ran == []


async def test_a_task_that_runs_eagerly_by_itself(app: Celery) -> None:
    """``adelay()`` is ``delay()``, whose results have ended, and say so."""
    app.conf.task_always_eager = True

    @app.task(base=AbortableTask, shared=False)
    def add(x: int, y: int) -> int:
        return x + y

    result = await add.adelay(1, 2)
    assert await result == 3
    assert (await result.abort()).answer == "finished"


async def test_a_result_is_awaited_through_the_client_that_sent_it(
    client: AbortClient, step: Step
) -> None:
    """No second client is opened for the results of one."""
    result = await client.send(chain(step(1), step(2)))
    assert (await result.abort()).is_requested
    assert (await client.snapshot(result.id)).is_aborted
    await client.aclose()
    with pytest.raises(AioabortError, match="not open"):
        await result.abort()
