"""Which ids are queried, and when."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest
from anyio import create_task_group, fail_after

from aioabort.poller import BATCH_SIZE, Poller, PollSchedule, steady_pace

NEVER = 3_600.0


def never(_age: float, _took: float) -> float:
    """Do not poll while the test runs."""
    return NEVER


class Queries:
    """Records the ids of each query, and lets a test wait for the next one."""

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
def queries() -> Queries:
    return Queries()


@asynccontextmanager
async def running(poller: Poller, queries: Queries) -> AsyncIterator[None]:
    async with create_task_group() as group:
        group.start_soon(poller.run, queries)
        yield
        group.cancel_scope.cancel()


async def settle() -> None:
    """Let everything run that can run without waiting."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_an_added_id_is_queried_at_once(queries: Queries) -> None:
    """An added id is queried without waiting for the poll."""
    poller = Poller(never)
    async with running(poller, queries):
        poller.add("a")
        assert await queries.next() == ["a"]


async def test_without_ids_there_is_no_query(queries: Queries) -> None:
    """An idle poller sends no query, even when all poll intervals have passed."""
    poller = Poller(steady_pace(0.001))
    async with running(poller, queries):
        poller.add("a")
        await queries.next()
        poller.remove("a")
        poller.poll_all_soon()
        await asyncio.sleep(0.1)
        assert queries.batches.qsize() <= 1  # one may have been under way


async def test_all_ids_are_queried_at_every_poll(queries: Queries) -> None:
    """Without any notification, all ids are polled again and again."""
    poller = Poller(steady_pace(0.01))
    async with running(poller, queries):
        poller.add("a")
        poller.add("b")
        for _ in range(3):
            assert set(await queries.next()) == {"a", "b"}


async def test_a_notification_queries_only_the_ids_that_it_names(
    queries: Queries,
) -> None:
    """A notified id costs one query if it was added, and none otherwise."""
    poller = Poller(never)
    async with running(poller, queries):
        poller.add("a")
        poller.add("b")
        await queries.next()
        poller.on_notification(["a", "elsewhere"])
        assert await queries.next() == ["a"]
        poller.on_notification(["elsewhere"])
        await settle()
        assert queries.batches.empty()


async def test_a_notification_without_ids_means_all(queries: Queries) -> None:
    """A notification that names no id is followed by a query of all ids."""
    poller = Poller(never)
    async with running(poller, queries):
        poller.add("a")
        poller.add("b")
        await queries.next()
        poller.on_notification(None)
        assert set(await queries.next()) == {"a", "b"}


async def test_a_poll_requested_during_a_poll_is_not_dropped(queries: Queries) -> None:
    """The query under way may have missed what the notification is about.

    poll: query(a) begins | notification for all | query(a) ends | poll: query(a)
    """
    poller = Poller(never)
    queries.may_go_on.clear()
    async with running(poller, queries):
        poller.add("a")
        await queries.next()
        poller.on_notification(None)
        queries.may_go_on.set()
        assert await queries.next() == ["a"]
        await settle()
        assert queries.batches.empty()


async def test_notifications_during_a_query_share_the_next_one(
    queries: Queries,
) -> None:
    """Ids that come in while a query is under way are queried together after it.

    query(a) begins | add(b), add(c), poll_now(a) | query(a) ends | query(b, c, a)
    """
    poller = Poller(never)
    queries.may_go_on.clear()
    async with running(poller, queries):
        poller.add("a")
        await queries.next()
        poller.add("b")
        poller.add("c")
        poller.poll_now(["a"])
        queries.may_go_on.set()
        assert set(await queries.next()) == {"a", "b", "c"}
        await settle()
        assert queries.batches.empty()


async def test_poll_with_next_waits_for_the_next_query(queries: Queries) -> None:
    """The id causes no query by itself, and is part of the next one."""
    poller = Poller(never)
    async with running(poller, queries):
        poller.add("a")
        await queries.next()
        poller.poll_with_next("a")
        await settle()
        assert queries.batches.empty()
        poller.add("b")
        assert set(await queries.next()) == {"a", "b"}


async def test_a_removed_id_is_not_queried_any_more(queries: Queries) -> None:
    """An id that was due when it was removed is left out."""
    poller = Poller(never)
    async with running(poller, queries):
        poller.add("a")
        poller.add("b")
        poller.remove("a")
        assert await queries.next() == ["b"]


async def test_a_query_has_at_most_a_thousand_ids(queries: Queries) -> None:
    """More ids than fit into one query are split into several."""
    poller = Poller(never)
    async with running(poller, queries):
        for number in range(2 * BATCH_SIZE + 1):
            poller.add(str(number))
        sizes = [len(await queries.next()) for _ in range(3)]
        assert sizes == [BATCH_SIZE, BATCH_SIZE, 1]


async def test_a_shorter_interval_takes_effect_at_once(queries: Queries) -> None:
    """When notifications fail, the next poll comes within the shorter interval."""
    poller = Poller(never)
    async with running(poller, queries):
        poller.add("a")
        await queries.next()
        poller.set_pace(steady_pace(0.01))
        assert await queries.next() == ["a"]


async def test_a_failed_query_is_repeated_by_the_next_run(queries: Queries) -> None:
    """An error of the query ends the run, and no added id is forgotten."""
    poller = Poller(never)

    async def fail(task_ids: list[str]) -> None:
        raise ConnectionError(*task_ids)

    poller.add("a")
    poller.add("b")
    with fail_after(5), pytest.raises(ConnectionError):
        await poller.run(fail)
    async with running(poller, queries):
        assert set(await queries.next()) == {"a", "b"}


async def test_a_young_id_sets_the_pace(queries: Queries) -> None:
    """Ids that are old are polled faster again as soon as there is a young one.

    old: next poll in an hour | add(young) | next poll at the pace of the young
    """
    poller = Poller(lambda age, _took: 0.05 if age == 0.0 else NEVER)
    async with running(poller, queries):
        poller.add("old")
        assert await queries.next() == ["old"]
        poller.add("young")
        assert await queries.next() == ["young"]
        assert set(await queries.next()) == {"old", "young"}


async def test_watched_changes_are_polled_at_their_own_pace(queries: Queries) -> None:
    """The poll for changes queries the ids whose changes are watched, and no others."""
    poller = Poller(never, changes_pace=steady_pace(0.01))
    async with running(poller, queries):
        poller.add("a")
        poller.watch_changes("b")
        assert set(await queries.next()) == {"a", "b"}
        for _ in range(3):
            assert await queries.next() == ["b"]
        poller.unwatch_changes("b")
        await settle()
        assert queries.batches.qsize() <= 1  # one may have been under way


async def test_a_long_poll_does_not_delay_a_notification(queries: Queries) -> None:
    """An id notified during a poll of thousands is queried before the rest.

    poll: query(1,000) | poll_now(late) | query(late) | poll: query(1,000) ...
    """
    poller = Poller(never)
    for number in range(5 * BATCH_SIZE):
        poller.add(str(number))
    queries.may_go_on.clear()
    async with running(poller, queries):
        await queries.next()
        late = str(5 * BATCH_SIZE - 1)
        poller.poll_now([late])
        queries.may_go_on.set()
        assert await queries.next() == [late]
        assert len(await queries.next()) == BATCH_SIZE


async def test_many_notifications_do_not_delay_a_poll(queries: Queries) -> None:
    """While notifications come faster than queries, the poll still gets its turn.

    notifications for 3,000 ids at each query | all ids are queried
    """
    poller = Poller(never)
    ids = [str(number) for number in range(4 * BATCH_SIZE)]
    for task_id in ids:
        poller.add(task_id)
    seen: set[str] = set()
    async with running(poller, queries):
        for _ in range(9):
            seen.update(await queries.next())
            poller.poll_now(ids[: 3 * BATCH_SIZE])
    assert seen == set(ids)


def test_a_poll_is_never_later_than_its_pace() -> None:
    """The interval is a promise: jitter makes a poll earlier, never later."""
    for _ in range(100):
        poll = PollSchedule(steady_pace(10.0))
        poll.add("a")
        before = monotonic()
        poll.plan_next(took=0.0)
        assert before + 8.0 <= poll.due_at <= monotonic() + 10.0
