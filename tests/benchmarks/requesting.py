"""What a web process waits for when it asks tasks to stop: one, and many at once."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import uuid4

import asyncpg

from aioabort import AbortClient

from .peers import contrib, limit, ours
from .place import Place, make_app, observer

SUBJECT = "requesting"

#: How often in a row each gets its turn in a round.
TURNS = 10
#: Seconds: a web process is asked now and then.
PAUSE = 0.002

SOME, MANY = 1_000, 10_000

Act = Callable[[], Awaitable[object]]


def measure(place: Place) -> None:
    """Measure them in turn."""
    with place.tables() as dsn:
        asyncio.run(_measure(place, dsn))


async def _measure(place: Place, dsn: str) -> None:
    bare = await asyncpg.connect(dsn)
    try:
        async with ours.open_client(dsn) as client:
            await _one(place, dsn, client, bare)
            await _many(place, dsn, client)
    finally:
        await bare.close()
    await _count(place, dsn)


async def _one(
    place: Place, dsn: str, client: AbortClient, bare: "asyncpg.Connection[object]"
) -> None:
    async def abort() -> None:
        await client.abort(str(uuid4()), reason="why", requested_by="alice")

    async def commit() -> None:
        await bare.execute(limit.REQUEST, str(uuid4()))

    acts: dict[str, Act] = {ours.NOTIFIED: abort, limit.COMMIT: commit}
    acts |= {name: _contrib(dsn, name) for name in contrib.ENGINES}
    for act in acts.values():
        await act()
    for _ in range(place.pick(10, 5)):
        times = {
            name: [await _turn(act) for _ in range(TURNS)] for name, act in acts.items()
        }
        for name, values in times.items():
            place.records.add(SUBJECT, "abort()", name, values, ids=1)


async def _many(place: Place, dsn: str, client: AbortClient) -> None:
    for ids in (SOME, MANY):
        for _ in range(place.pick(5, 3)):

            async def abort(ids: int = ids) -> None:
                await client.abort([str(uuid4()) for _ in range(ids)], reason="why")

            values = [await _turn(abort)]
            place.records.add(SUBJECT, "abort()", ours.NOTIFIED, values, ids=ids)
    # It asks for one after the other, which ten thousand would not make faster.
    ids = place.pick(SOME, 100)
    for name in contrib.ENGINES:
        act = _contrib(dsn, name)

        async def repeat(act: Act = act) -> None:
            for _ in range(ids):
                await act()

        place.records.add(SUBJECT, "abort()", name, [await _turn(repeat)], ids=ids)


async def _count(place: Place, dsn: str) -> None:
    """Count the transactions of an abort; each is one round trip."""
    aborts = 100
    # One that listens there is woken up by its own notifications, in a transaction.
    app = make_app(dsn, aioabort_listen_dsn=place.server)
    counts = []
    async with observer(place, dsn) as observed:
        for times in (0, aborts):
            before = await observed.transactions()
            async with AbortClient(app) as client:
                for _ in range(times):
                    await client.abort(str(uuid4()))
                    # Else several would share a notification.
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            counts.append(await observed.transactions() - before)
    place.records.add(
        *(SUBJECT, "round trips of an abort", ours.NOTIFIED),
        [(counts[1] - counts[0]) / aborts],
        unit="",
    )


def _contrib(dsn: str, name: str) -> Act:
    app = contrib.app_of(dsn, pooled=contrib.ENGINES[name])

    async def abort() -> None:
        # On the loop, which it blocks: a thread would only add to it.
        contrib.abort(app, str(uuid4()))

    return abort


async def _turn(act: Act) -> float:
    await asyncio.sleep(PAUSE)
    start = time.perf_counter()
    await act()
    return time.perf_counter() - start
