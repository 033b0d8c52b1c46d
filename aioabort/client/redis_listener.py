"""Listens for what Celery publishes in Redis: each state of a task, on a channel of its own.

The channel has the name of the key that holds the result, and the message is a copy of
that. It is only a notification, and the key is the truth: a message may be lost with its
connection, and a read finds what was stored before the subscription.

Each awaited task is subscribed to alone. A pattern for all tasks would cost less for the
waits, and bring the results of all other tasks of all users of that Redis.
"""

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Any, Final, Never

import anyio.lowlevel
from anyio import create_task_group, sleep

from aioabort.celery_compat import task_id_of_key
from aioabort.exceptions import StoreUnavailable
from aioabort.timing import Timing

#: Channels in one command.
MOST_CHANNELS: Final = 200

#: Messages that are handled before the event loop runs other code.
MESSAGE_BATCH: Final = 50

#: Gets the ids of tasks that are to be queried now.
OnNotification = Callable[[list[str]], None]


class RedisListener:
    """Subscribes to the awaited tasks, and names those that are to be queried."""

    def __init__(self, backend: Any, timing: Timing) -> None:
        self._channel_of: Final[Callable[[str], bytes]] = backend.get_key_for_task
        self._task_id_of: Final = task_id_of_key(backend)
        self._timing: Final = timing
        self._awaited: Final[set[str]] = set()
        #: The ids that the server was asked to send messages for.
        self._subscribed: Final[set[str]] = set()
        #: The ids whose subscription may have to change, in order.
        self._changed: Final[dict[str, None]] = {}
        self._has_changed: Final = asyncio.Event()
        self._is_listening = False
        self._last_heard = 0.0

    def add(self, task_id: str) -> bool:
        """Subscribe to *task_id*; return whether it will be queried after that.

        A query before it could miss a task that ends before the subscription:

            query: no result | task ends, no subscriber gets the message | subscribed
        """
        if task_id in self._awaited:
            return False
        self._awaited.add(task_id)
        self._change(task_id)
        return self._is_listening

    def remove(self, task_id: str) -> None:
        """Unsubscribe from *task_id*, if it was added."""
        self._awaited.discard(task_id)
        self._change(task_id)

    async def run(
        self,
        pubsub: Any,
        on_notification: OnNotification,
        on_listening: Callable[[], None],
    ) -> None:
        """For ever, call *on_notification* with each task that has a new state, or is subscribed.

        *on_listening* is called when the server has answered.
        """
        self._subscribed.clear()
        self._changed.update(dict.fromkeys(self._awaited))
        self._has_changed.set()
        try:
            await pubsub.ping()
            async with create_task_group() as group:
                group.start_soon(self._watch, pubsub)
                group.start_soon(self._subscribe, pubsub, on_notification)
                await self._receive(pubsub, on_notification, on_listening)
        finally:
            self._is_listening = False

    async def _receive(
        self,
        pubsub: Any,
        on_notification: OnNotification,
        on_listening: Callable[[], None],
    ) -> Never:
        loop, count = asyncio.get_running_loop(), 0
        while True:
            message = await pubsub.get_message(timeout=None)
            self._last_heard = loop.time()
            if not self._is_listening:
                self._is_listening = True
                on_listening()
            if message is not None and message["type"] in {"message", "subscribe"}:
                on_notification([self._task_id_of(message["channel"])])
            count += 1
            if not count % MESSAGE_BATCH:
                # Messages that have arrived already are returned without a pause.
                await anyio.lowlevel.checkpoint()

    async def _subscribe(self, pubsub: Any, on_notification: OnNotification) -> Never:
        while True:
            await self._has_changed.wait()
            self._has_changed.clear()
            # The ids that other coroutines add now share the command.
            await anyio.lowlevel.checkpoint()
            while self._changed:
                batch = list(islice(self._changed, MOST_CHANNELS))
                for task_id in batch:
                    del self._changed[task_id]
                await self._send(pubsub, batch, on_notification)
                await asyncio.sleep(0)

    async def _send(
        self, pubsub: Any, task_ids: list[str], on_notification: OnNotification
    ) -> None:
        awaited = [task_id for task_id in task_ids if task_id in self._awaited]
        new = [task_id for task_id in awaited if task_id not in self._subscribed]
        old = [
            task_id
            for task_id in task_ids
            if task_id in self._subscribed and task_id not in self._awaited
        ]
        if len(awaited) > len(new):
            # Removed and added again before the next command to the server.
            on_notification([id_ for id_ in awaited if id_ in self._subscribed])
        self._subscribed.update(new)
        self._subscribed.difference_update(old)
        if new:
            await pubsub.subscribe(*map(self._channel_of, new))
        if old:
            await pubsub.unsubscribe(*map(self._channel_of, old))

    async def _watch(self, pubsub: Any) -> Never:
        """Raise StoreUnavailable if the server goes silent without closing anything."""
        timing, loop = self._timing, asyncio.get_running_loop()
        while True:
            await sleep(timing.heartbeat)
            asked_at = loop.time()
            await pubsub.ping()
            await sleep(timing.heartbeat_timeout)
            if self._last_heard < asked_at:
                raise StoreUnavailable("Celery's Redis does not answer a ping")

    def _change(self, task_id: str) -> None:
        self._changed[task_id] = None
        self._has_changed.set()
