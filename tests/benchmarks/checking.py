"""What it costs a task to look whether it is to stop."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

from .marks import Board, open_board
from .peers import contrib, pgqueuer, procrastinate
from .place import Place
from .workers import Worker, celery_worker

SUBJECT = "checking"

EVENT = "threading.Event.is_set()"
TOKEN = "aioabort: token.aborted"
METHOD = "aioabort: self.is_aborted()"

WAYS = {"self.is_aborted()": METHOD, "token.aborted": TOKEN, "Event.is_set()": EVENT}


def measure(place: Place) -> None:
    """Measure it inside of tasks, in turn."""
    with place.tables() as dsn:
        asyncio.run(_measure(place, dsn))


async def _measure(place: Place, dsn: str) -> None:
    async with (
        open_board(place.folder) as board,
        celery_worker(place, board, dsn, "prefork", 1) as prefork,
        celery_worker(place, board, dsn, "threads", 1) as threads,
        procrastinate.working(place, board) as jobs,
        pgqueuer.working(place, board) as queries,
    ):

        async def defer(key: str) -> None:
            await jobs.configure_task("check").defer_async(key=key)

        async def enqueue(key: str) -> None:
            await queries.enqueue("check", key.encode())

        for _ in range(place.pick(5, 2)):
            for worker in (prefork, threads):
                for kind, names in (
                    ("ours", WAYS),
                    ("contrib", {"self.is_aborted()": contrib.NAME}),
                ):

                    async def send(
                        key: str, worker: Worker = worker, kind: str = kind
                    ) -> None:
                        name = f"{kind}.check"
                        await asyncio.to_thread(worker.app.send_task, name, (key,))

                    times = await _times(board, send)
                    for way, name in names.items():
                        _add(place, name, worker.pool, times[way])
            _add(place, procrastinate.CHECK, "asyncio", await _times(board, defer))
            _add(place, pgqueuer.CHECK, "asyncio", await _times(board, enqueue))


async def _times(board: Board, send: Callable[[str], Awaitable[None]]) -> Any:
    key = uuid4().hex
    await send(key)
    return json.loads((await board.marked(key, "checked")).more)


def _add(place: Place, contender: str, pool: str, times: list[float]) -> None:
    place.records.add(SUBJECT, "one check", contender, times, pool=pool)
