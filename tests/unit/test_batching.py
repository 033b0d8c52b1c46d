"""When queued items are sent."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from anyio import fail_after

from aioabort.batching import BatchSender


class Sends:
    """A queue of items, and the batches that were sent."""

    def __init__(self, gap: float) -> None:
        self.sender = BatchSender(gap)
        self.queued: list[str] = []
        self.batches: asyncio.Queue[list[str]] = asyncio.Queue()
        #: Called while a batch is being sent.
        self.during = list[str]()

    def put(self, item: str) -> None:
        """Queue *item*."""
        self.queued.append(item)
        self.sender.wake()

    async def send(self) -> None:
        """Send the queued items; then queue those of ``during``."""
        batch, self.queued = self.queued, []
        for item in self.during:
            self.put(item)
        self.during.clear()
        await self.batches.put(batch)

    async def batch(self) -> list[str]:
        """Return the next batch."""
        with fail_after(5):
            return await self.batches.get()


@pytest.fixture
async def sends(request: pytest.FixtureRequest) -> AsyncIterator[Sends]:
    sends = Sends(request.param)
    sends.put("before the start")
    running = asyncio.create_task(sends.sender.run(sends.send))
    yield sends
    running.cancel()
    await asyncio.wait([running])


@pytest.mark.parametrize("sends", [0.0], indirect=True)
async def test_the_first_items_are_sent_at_once(sends: Sends) -> None:
    """Items that were queued before the start or during an outage are not forgotten."""
    assert await sends.batch() == ["before the start"]


@pytest.mark.parametrize("sends", [0.3], indirect=True)
async def test_items_within_the_gap_are_sent_together(sends: Sends) -> None:
    """Not before its end, and in one batch."""
    loop = asyncio.get_running_loop()
    await sends.batch()
    start = loop.time()
    sends.put("a")
    await asyncio.sleep(0.05)
    sends.put("b")
    assert await sends.batch() == ["a", "b"]
    assert loop.time() - start >= 0.25


@pytest.mark.parametrize("sends", [0.0], indirect=True)
async def test_an_item_that_is_queued_while_others_are_sent_is_sent(
    sends: Sends,
) -> None:
    """Closes: send() has read the queue | put() | the wake-up is cleared afterwards."""
    await sends.batch()
    sends.during.append("late")
    sends.put("early")
    assert await sends.batch() == ["early"]
    assert await sends.batch() == ["late"]


@pytest.mark.parametrize("sends", [0.0], indirect=True)
async def test_without_items_nothing_is_sent(sends: Sends) -> None:
    """An idle process sends no statement."""
    await sends.batch()
    await asyncio.sleep(0.05)
    assert sends.batches.empty()


async def test_an_error_ends_it() -> None:
    """The caller decides when to start again, which sends what is left."""

    async def fail() -> None:
        raise ConnectionError

    with fail_after(5), pytest.raises(ConnectionError):
        await BatchSender(0.0).run(fail)
