"""The tasks of a load: what each does, and how it is published."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from celery import Celery

from aioabort import AbortReceipt

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

#: Tasks that make no check, and are killed so many seconds after the request.
GRACES = {"stubborn": 0.5, "limited": 0.5}

#: How tasks of a kind are published.
OPTIONS: dict[str, dict[str, Any]] = {
    # It goes off at about the moment of the kill.
    "limited": {"soft_time_limit": 1.0},
}

#: The first of a chain, and the task after it.
CHAINED, FOLLOWING = "chained", "following"

#: How many items a mapping has; no test waits for the last of them.
MAPPED = 1_000

#: Bytes of a large result.
LARGE = 4_000_000

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


@dataclass(slots=True)
class Item:
    """One task, and what its sender has seen of it."""

    task_id: str
    kind: str
    args: tuple[Any, ...]
    delay: float
    is_to_run: bool
    queue: Celery
    #: How often its message is sent.
    copies: int = 1
    #: The id of the task that is to run after it.
    follower: str | None = None
    receipt: AbortReceipt | None = None
    #: When ``abort()`` was called for the first time, and had returned.
    asked: float = 0.0
    committed: float = 0.0
    #: What the receipt says of the outcome, where that is not in the row.
    outcome: str | None = None
    #: How the wait ended: a value or an error, by its name.
    ending: str | None = None
    #: When it ended.
    awaited: float = 0.0

    @property
    def is_asked(self) -> bool:
        """Whether the task was asked to stop before it ended."""
        return self.receipt is not None and self.receipt.is_requested

    @property
    def grace(self) -> float | None:
        """After how many seconds the task is killed."""
        return GRACES.get(self.kind)

    def publish(self) -> None:
        """Send its message."""
        if self.kind == FOLLOWING:
            return  # the first of its chain is sent with it
        if self.follower is not None:
            self._publish_chain(self.follower)
            return
        name, args, kwargs = self.kind, self.args, {}
        if self.kind == "mapped":
            piece = dict(self.queue.signature("piece"))
            name, args = "celery.map", ()
            kwargs = {"task": piece, "it": [self.task_id] * MAPPED}
        for _ in range(self.copies):
            self.queue.send_task(
                name, args, kwargs, task_id=self.task_id, **OPTIONS.get(self.kind, {})
            )

    def _publish_chain(self, follower: str) -> None:
        first, second = (
            self.queue.signature("raising", (0,), immutable=True).set(task_id=task_id)
            for task_id in (self.task_id, follower)
        )
        (first | second).apply_async()


class ItemMaker:
    """Makes the items of a load, by *chance*."""

    def __init__(
        self,
        queues: list[Celery],
        chance: random.Random,
        *,
        kinds: Mapping[str, int] = KINDS,
        cleaning: float = CLEANING,
        longest_cleanup: float = LONGEST_CLEANUP,
        copies: int = 1,
    ) -> None:
        self._queues = queues
        self._chance = chance
        self._kinds = kinds
        self._cleaning = cleaning
        self._longest_cleanup = longest_cleanup
        self._copies = copies

    def make(self, *, queued: bool) -> Iterator[Item]:
        """Yield a task, and the one after it; *queued*: asked to stop at once."""
        [kind] = self._chance.choices(list(self._kinds), list(self._kinds.values()))
        item = Item(
            task_id=str(uuid4()),
            kind=kind,
            args=self._arguments(kind),
            delay=self._delay(queued=queued),
            # A run that begins after the end of another is not asked any more.
            is_to_run=self._copies > 1
            or (not queued and self._chance.random() < RUNNING),
            # The first queue's worker is the cheapest to run.
            queue=self._queues[0]
            if queued and self._chance.random() < FIRST
            else self._chance.choice(self._queues),
            copies=self._copies,
        )
        yield item
        if kind == CHAINED:
            item.follower = str(uuid4())
            delay = self._delay(queued=queued)
            is_to_run = False
            yield Item(item.follower, FOLLOWING, (), delay, is_to_run, item.queue)

    def _delay(self, *, queued: bool) -> float:
        return 0 if queued else self._chance.uniform(0, LATEST_REQUEST)

    def _arguments(self, kind: str) -> tuple[Any, ...]:
        if kind in {"short", "blind"}:
            return (self._chance.uniform(0, LONGEST_TASK),)
        if kind in {"raising", "returning", "failing", "undecided"}:
            cleans_up = self._chance.random() < self._cleaning
            return (self._chance.uniform(0, self._longest_cleanup) * cleans_up,)
        if kind == "large":
            return (LARGE,)
        return ()
