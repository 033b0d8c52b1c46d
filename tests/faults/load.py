"""A load of tasks; each is asked to stop at some moment and awaited.

What is known of each task is kept for the audit. Moments are those of the machine's
monotonic clock.
"""

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import CLOCK_MONOTONIC, clock_gettime

import anyio

from aioabort import AbortClient
from aioabort.exceptions import AioabortError, StoreError

from .items import Item, ItemMaker
from .workers import Diary

TICK = 0.1


def clock() -> float:
    """Return the moment."""
    return clock_gettime(CLOCK_MONOTONIC)


class Load:
    """The tasks of *maker*, asked to stop and awaited through *client*."""

    def __init__(
        self, client: AbortClient, diary: Diary, maker: ItemMaker, limit: int
    ) -> None:
        self.items: list[Item] = []
        #: What went wrong on the way, and was tried again: how often.
        self.troubles: dict[str, int] = {}
        #: How many tasks may be sent.
        self.limit = limit
        self._client = client
        self._diary = diary
        self._maker = maker
        self._publishers = ThreadPoolExecutor(2)
        self._is_on = True
        self._is_over = False

    async def run(self, burst: int, rate: float) -> None:
        """Send *burst* tasks, then *rate* a second, until ``stop()``; see all to their end.

        There are never more than *limit*: a slow recovery would have a long queue.
        """
        try:
            async with anyio.create_task_group() as group:
                start, sent = clock(), 0
                while self._is_on:
                    due = min(burst + int((clock() - start) * rate), self.limit)
                    items = [
                        item
                        for _ in range(due - sent)
                        for item in self._maker.make(queued=sent < burst)
                    ]
                    sent = due
                    self.items += items
                    if items:
                        group.start_soon(self._send, items)
                    await anyio.sleep(TICK)
        finally:
            # They may be trying still, when waits have been given up.
            self._is_over = True
            self._publishers.shutdown()

    def stop(self) -> None:
        """Send no more."""
        self._is_on = False

    async def _send(self, items: list[Item]) -> None:
        loop = asyncio.get_running_loop()
        publish = partial(self._publish, items)
        await loop.run_in_executor(self._publishers, publish)
        async with anyio.create_task_group() as group:
            for item in items:
                group.start_soon(self._abort, item)
                group.start_soon(self._await, item)

    def _publish(self, items: Iterable[Item]) -> None:
        for item in items:
            while not self._is_over:
                try:
                    item.publish()
                except Exception as error:  # noqa: BLE001 - the broker may be away
                    self._note(error)
                else:
                    break

    async def _abort(self, item: Item) -> None:
        # Others may ask it to stop, too, and then it never begins.
        while (
            item.is_to_run
            and item.ending is None
            and not self._diary.has_begun(item.task_id, item.copies)
        ):
            await anyio.sleep(TICK)
        await anyio.sleep(item.delay)
        item.asked = clock()
        while item.receipt is None:
            try:
                receipt = await self._client.abort(
                    item.task_id, reason=item.kind, grace=item.grace
                )
            except StoreError as error:
                # It may be committed or not: the next answer tells.
                self._note(error)
                await anyio.sleep(TICK)
            else:
                item.committed = clock()
                item.receipt = receipt
        self._diary.permit(item.task_id)

    async def _await(self, item: Item) -> None:
        try:
            value = await self._client.wait(item.task_id)
        except AioabortError as error:
            item.ending = type(error).__name__
        except Exception as error:  # noqa: BLE001 - the task's own
            item.ending = f"error {type(error).__name__}"
        else:
            item.ending = f"value {str(value)[:80]}"
        item.awaited = clock()

    def _note(self, error: Exception) -> None:
        name = f"{type(error).__name__}: {str(error)[:80]}"
        self.troubles[name] = self.troubles.get(name, 0) + 1
