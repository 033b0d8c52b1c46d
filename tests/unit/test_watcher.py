"""Which ids are looked at, and when."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest
from anyio import create_task_group, fail_after

from aioabort.watcher import BATCH, Poll, Watcher, steady

NEVER = 3_600.0


def never(_age: float, _took: float) -> float:
    """Do not poll while the test runs."""
    return NEVER


class Looks:
    """Records the ids of each look, and lets a test wait for the next one."""

    def __init__(self) -> None:
        self.batches: asyncio.Queue[list[str]] = asyncio.Queue()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def __call__(self, task_ids: list[str]) -> None:
        self.batches.put_nowait(task_ids)
        await self.may_go_on.wait()

    async def next(self) -> list[str]:
        with fail_after(5):
            return await self.batches.get()


@pytest.fixture
def looks() -> Looks:
    return Looks()


@asynccontextmanager
async def running(watcher: Watcher, looks: Looks) -> AsyncIterator[None]:
    async with create_task_group() as group:
        group.start_soon(watcher.run, looks)
        yield
        group.cancel_scope.cancel()


async def settle() -> None:
    """Let everything run that can run without waiting."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_an_id_is_looked_at_as_soon_as_it_is_watched(looks: Looks) -> None:
    """Watching makes the first look, however long the poll interval is."""
    watcher = Watcher(never)
    async with running(watcher, looks):
        watcher.watch("a")
        assert await looks.next() == ["a"]


async def test_nothing_watched_is_never_looked_at(looks: Looks) -> None:
    """An idle watcher makes no look, even when all poll intervals have passed."""
    watcher = Watcher(steady(0.001))
    async with running(watcher, looks):
        watcher.watch("a")
        await looks.next()
        watcher.unwatch("a")
        watcher.hint_all()
        await asyncio.sleep(0.1)
        assert looks.batches.qsize() <= 1  # one may have been under way


async def test_everything_is_looked_at_at_every_poll(looks: Looks) -> None:
    """Without any hint, the poll finds all that is watched, again and again."""
    watcher = Watcher(steady(0.01))
    async with running(watcher, looks):
        watcher.watch("a")
        watcher.watch("b")
        for _ in range(3):
            assert set(await looks.next()) == {"a", "b"}


async def test_a_hint_is_followed_by_a_look_at_that_id_only(looks: Looks) -> None:
    """A hint costs a look at what it names, and nothing for what is not watched."""
    watcher = Watcher(never)
    async with running(watcher, looks):
        watcher.watch("a")
        watcher.watch("b")
        await looks.next()
        watcher.on_hint(["a", "elsewhere"])
        assert await looks.next() == ["a"]
        watcher.on_hint(["elsewhere"])
        await settle()
        assert looks.batches.empty()


async def test_a_hint_without_ids_means_everything(looks: Looks) -> None:
    """A notification that names nobody is followed by a look at all."""
    watcher = Watcher(never)
    async with running(watcher, looks):
        watcher.watch("a")
        watcher.watch("b")
        await looks.next()
        watcher.on_hint(None)
        assert set(await looks.next()) == {"a", "b"}


async def test_hints_during_a_look_share_the_next_one(looks: Looks) -> None:
    """Ids that come in while a statement is under way are not lost, nor one a look.

    look(a) begins | watch(b), watch(c), hint(a) | look(a) ends | look(b, c, a)
    """
    watcher = Watcher(never)
    looks.may_go_on.clear()
    async with running(watcher, looks):
        watcher.watch("a")
        await looks.next()
        watcher.watch("b")
        watcher.watch("c")
        watcher.hint(["a"])
        looks.may_go_on.set()
        assert set(await looks.next()) == {"a", "b", "c"}
        await settle()
        assert looks.batches.empty()


async def test_a_deferred_id_waits_for_the_next_look(looks: Looks) -> None:
    """A deferred id causes no look of its own and is part of the next one."""
    watcher = Watcher(never)
    async with running(watcher, looks):
        watcher.watch("a")
        await looks.next()
        watcher.defer("a")
        await settle()
        assert looks.batches.empty()
        watcher.watch("b")
        assert set(await looks.next()) == {"a", "b"}


async def test_an_unwatched_id_is_not_looked_at_any_more(looks: Looks) -> None:
    """What was due when it was unwatched is left out."""
    watcher = Watcher(never)
    async with running(watcher, looks):
        watcher.watch("a")
        watcher.watch("b")
        watcher.unwatch("a")
        assert await looks.next() == ["b"]


async def test_a_look_has_at_most_a_thousand_ids(looks: Looks) -> None:
    """More ids than fit into one statement are looked at in several."""
    watcher = Watcher(never)
    async with running(watcher, looks):
        for number in range(2 * BATCH + 1):
            watcher.watch(str(number))
        sizes = [len(await looks.next()) for _ in range(3)]
        assert sizes == [BATCH, BATCH, 1]


async def test_a_shorter_interval_takes_effect_at_once(looks: Looks) -> None:
    """When notifications fail, the next poll comes within the shorter interval."""
    watcher = Watcher(never)
    async with running(watcher, looks):
        watcher.watch("a")
        await looks.next()
        watcher.pace(steady(0.01))
        assert await looks.next() == ["a"]


async def test_a_failed_look_is_made_again_by_the_next_run(looks: Looks) -> None:
    """What a look raises ends the run, and nothing that was watched is forgotten."""
    watcher = Watcher(never)

    async def fail(task_ids: list[str]) -> None:
        raise ConnectionError(*task_ids)

    watcher.watch("a")
    watcher.watch("b")
    with fail_after(5), pytest.raises(ConnectionError):
        await watcher.run(fail)
    async with running(watcher, looks):
        assert set(await looks.next()) == {"a", "b"}


async def test_a_young_id_sets_the_pace(looks: Looks) -> None:
    """Ids that are old are polled faster again as soon as there is a young one.

    old: next poll in an hour | watch(young) | next poll at the pace of the young
    """
    watcher = Watcher(lambda age, _took: 0.05 if age == 0.0 else NEVER)
    async with running(watcher, looks):
        watcher.watch("old")
        assert await looks.next() == ["old"]
        watcher.watch("young")
        assert await looks.next() == ["young"]
        assert set(await looks.next()) == {"old", "young"}


async def test_what_is_watched_closely_is_polled_at_its_own_pace(looks: Looks) -> None:
    """The close poll looks at what is watched closely, and at nothing else."""
    watcher = Watcher(never, close_pace=steady(0.01))
    async with running(watcher, looks):
        watcher.watch("a")
        watcher.watch_closely("b")
        assert set(await looks.next()) == {"a", "b"}
        for _ in range(3):
            assert await looks.next() == ["b"]
        watcher.unwatch_closely("b")
        await settle()
        assert looks.batches.qsize() <= 1  # one may have been under way


async def test_a_long_poll_does_not_hold_up_a_hint(looks: Looks) -> None:
    """A hint that comes during a poll of thousands is looked at before its rest.

    poll: look(1,000) | hint(late) | look(late) | poll: look(1,000) ...
    """
    watcher = Watcher(never)
    for number in range(5 * BATCH):
        watcher.watch(str(number))
    looks.may_go_on.clear()
    async with running(watcher, looks):
        await looks.next()
        late = str(5 * BATCH - 1)
        watcher.hint([late])
        looks.may_go_on.set()
        assert await looks.next() == [late]
        assert len(await looks.next()) == BATCH


async def test_many_hints_do_not_hold_up_a_poll(looks: Looks) -> None:
    """While hints come faster than looks, the poll still gets its turn.

    hints for 3,000 ids again at each look | everything is looked at all the same
    """
    watcher = Watcher(never)
    ids = [str(number) for number in range(4 * BATCH)]
    for task_id in ids:
        watcher.watch(task_id)
    seen: set[str] = set()
    async with running(watcher, looks):
        for _ in range(9):
            seen.update(await looks.next())
            watcher.hint(ids[: 3 * BATCH])
    assert seen == set(ids)


def test_a_poll_is_never_later_than_its_pace() -> None:
    """The interval is a promise: chance makes a poll earlier, never later."""
    for _ in range(100):
        poll = Poll(steady(10.0))
        poll.add("a")
        before = monotonic()
        poll.plan(took=0.0)
        assert before + 8.0 <= poll.due_at <= monotonic() + 10.0
