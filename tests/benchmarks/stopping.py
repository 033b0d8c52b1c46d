"""From the call of ``abort()`` until the body stops."""

import asyncio
import random
import time
from contextlib import AsyncExitStack
from functools import partial
from uuid import uuid4

from aioabort import AbortClient

from .marks import Board, open_board
from .peers import contrib, limit, ours, pgqueuer, procrastinate, saq
from .peers.stoppers import Stopper
from .place import Place
from .workers import Worker, celery_worker

SUBJECT = "stopping"

CROWD = 500


def measure(place: Place) -> None:
    """Measure every contender, one after the other, several times."""
    with place.tables() as dsn:
        asyncio.run(_measure(place, dsn))


async def _measure(place: Place, dsn: str) -> None:
    async with AsyncExitStack() as stack:
        board = await stack.enter_async_context(open_board(place.folder))
        opened = [
            limit.stoppers(place, board, dsn, "none"),
            *(
                ours.stoppers(place, board, dsn, pool)
                for pool in ("prefork", "threads")
            ),
            *(
                contrib.stoppers(place, board, dsn, pool)
                for pool in ("prefork", "threads")
            ),
            procrastinate.stoppers(place, board),
            pgqueuer.stoppers(place, board),
            saq.stoppers(place, board),
        ]
        stoppers = [
            stopper
            for context in opened
            for stopper in await stack.enter_async_context(context)
        ]
        for _ in range(place.pick(3, 1)):
            times: list[list[float]] = [[] for _ in stoppers]
            for _ in range(place.pick(6, 4)):
                for stopper, found in zip(stoppers, times, strict=True):
                    found.append(await _stop(stopper, board))
            for stopper, found in zip(stoppers, times, strict=True):
                _add(place, stopper, found)
    async with open_board(place.folder) as board:
        await _crowd(place, board, dsn)


async def _stop(stopper: Stopper, board: Board) -> float:
    """Return the seconds from the call to the end of the body."""
    key = uuid4().hex
    handle = await stopper.start(key)
    started = await board.marked(key, "started")
    # Until it is asleep, and at any moment of a poll.
    await asyncio.sleep(random.uniform(0.03, 0.15))
    stopped = asyncio.create_task(stopper.stopped(board, key, started))
    await asyncio.sleep(0)
    called_at = time.monotonic()
    await stopper.abort(handle)
    return await stopped - called_at


def _add(place: Place, stopper: Stopper, times: list[float]) -> None:
    add = partial(place.records.add, SUBJECT, "abort to stop", stopper.name, times)
    add(pool=stopper.pool, body=stopper.body)


async def _crowd(place: Place, board: Board, dsn: str) -> None:
    """Abort as many coroutines of one process as it runs."""
    async with ours.open_client(dsn) as client:
        for _ in range(place.pick(3, 1)):
            # A new one each time: Celery's backend stores the ends of them all over as
            # many new connections, from as many threads, for more than half a minute.
            async with celery_worker(place, board, dsn, "threads", CROWD) as worker:
                times = await _stop_all(client, board, worker)
            add = partial(place.records.add, SUBJECT, "abort to stop", ours.NOTIFIED)
            add(times, pool="threads", body=ours.BODIES["crowd"])


async def _stop_all(client: AbortClient, board: Board, worker: Worker) -> list[float]:
    """Return the seconds from one request for all to the end of each body."""
    keys = [uuid4().hex for _ in range(CROWD)]
    send = partial(worker.app.send_task, "ours.coroutine")
    sent = [(await asyncio.to_thread(send, (key,))).id for key in keys]
    for key in keys:
        await board.marked(key, "started")
    called_at = time.monotonic()
    await client.abort(sent)
    marks = [await board.marked(key, "stopped") for key in keys]
    return [mark.moment - called_at for mark in marks]
