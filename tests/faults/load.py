"""A load of tasks, each of which is asked to stop at some moment and awaited.

What is known of each task is kept for the audit. Moments are those of the machine's
monotonic clock.
"""

import asyncio
import random
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import CLOCK_MONOTONIC, clock_gettime
from uuid import uuid4

import anyio
from celery import Celery

from aioabort import AbortClient, AbortReceipt
from aioabort.exceptions import AioabortError, StoreError

from .workers import Diary

TICK = 0.1

#: What the tasks do, and how many of a hundred do it.
KINDS = {
    "raising": 30,
    "returning": 10,
    "failing": 10,
    "progressing": 10,
    "waiting": 10,
    "cancelled": 10,
    "retrying": 10,
    "short": 5,
    "blind": 5,
}

#: How many of the tasks after the burst are asked to stop once their body has begun;
#: the others at any moment after their publication.
RUNNING = 0.6

#: How much of the burst goes to the first queue without a choice.
FIRST = 0.6

#: Seconds from that moment to the request, at most.
LATEST_REQUEST = 1.0

#: Seconds that tasks which end by themselves take, at most.
LONGEST_TASK = 0.4

#: Tasks that clean up when they have seen the abort: how many do, and for how long.
CLEANING = 0.3
LONGEST_CLEANUP = 3.0


def clock() -> float:
    """Return the moment."""
    return clock_gettime(CLOCK_MONOTONIC)


@dataclass(slots=True)
class Item:
    """One task, and what its sender has seen of it."""

    task_id: str
    kind: str
    args: tuple[float, ...]
    delay: float
    is_to_run: bool
    queue: Celery
    receipt: AbortReceipt | None = None
    #: When ``abort()`` had returned.
    committed: float = 0.0
    #: How the wait ended: a value or an error, by its name.
    ending: str | None = None

    @property
    def is_asked(self) -> bool:
        """Whether the task was asked to stop before it ended."""
        return self.receipt is not None and self.receipt.is_requested


class Load:
    """Tasks for *queues* by turns, asked to stop and awaited through *client*."""

    def __init__(
        self,
        client: AbortClient,
        queues: list[Celery],
        diary: Diary,
        chance: random.Random,
        *,
        kinds: Mapping[str, int] = KINDS,
        cleaning: float = CLEANING,
    ) -> None:
        self.items: list[Item] = []
        #: What went wrong on the way, and was tried again: how often.
        self.troubles: dict[str, int] = {}
        self._client = client
        self._queues = queues
        self._diary = diary
        self._chance = chance
        self._kinds = kinds
        self._cleaning = cleaning
        self._publishers = ThreadPoolExecutor(2)
        self._is_on = True

    async def run(self, burst: int, rate: float) -> None:
        """Send *burst* tasks, then *rate* a second, until ``stop()``; see all to their end."""
        async with anyio.create_task_group() as group:
            start, sent = clock(), 0
            while self._is_on:
                due = burst + int((clock() - start) * rate)
                items = [self._make(queued=sent < burst) for _ in range(due - sent)]
                sent = due
                self.items += items
                if items:
                    group.start_soon(self._send, items)
                await anyio.sleep(TICK)
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
            while True:
                try:
                    item.queue.send_task(item.kind, item.args, task_id=item.task_id)
                except Exception as error:  # noqa: BLE001 - the broker may be away
                    self._note(error)
                else:
                    break

    async def _abort(self, item: Item) -> None:
        # Others may ask it to stop, too, and then it never begins.
        while (
            item.is_to_run
            and item.ending is None
            and not self._diary.has_begun(item.task_id)
        ):
            await anyio.sleep(TICK)
        await anyio.sleep(item.delay)
        while item.receipt is None:
            try:
                receipt = await self._client.abort(item.task_id, reason=item.kind)
            except StoreError as error:
                # It may be committed or not: the next answer tells.
                self._note(error)
                await anyio.sleep(TICK)
            else:
                item.committed = clock()
                item.receipt = receipt

    async def _await(self, item: Item) -> None:
        try:
            value = await self._client.wait(item.task_id)
        except AioabortError as error:
            item.ending = type(error).__name__
        except Exception as error:  # noqa: BLE001 - the task's own
            item.ending = f"error {type(error).__name__}"
        else:
            item.ending = f"value {value}"

    def _make(self, *, queued: bool) -> Item:
        [kind] = self._chance.choices(list(self._kinds), list(self._kinds.values()))
        return Item(
            task_id=str(uuid4()),
            kind=kind,
            args=self._arguments(kind),
            delay=0 if queued else self._chance.uniform(0, LATEST_REQUEST),
            is_to_run=not queued and self._chance.random() < RUNNING,
            # The first queue's worker is the cheapest to run.
            queue=self._queues[0]
            if queued and self._chance.random() < FIRST
            else self._chance.choice(self._queues),
        )

    def _arguments(self, kind: str) -> tuple[float, ...]:
        if kind in {"short", "blind"}:
            return (self._chance.uniform(0, LONGEST_TASK),)
        if kind in {"raising", "returning", "failing"}:
            cleans_up = self._chance.random() < self._cleaning
            return (self._chance.uniform(0, LONGEST_CLEANUP) if cleans_up else 0,)
        return ()

    def _note(self, error: Exception) -> None:
        name = f"{type(error).__name__}: {str(error)[:80]}"
        self.troubles[name] = self.troubles.get(name, 0) + 1
