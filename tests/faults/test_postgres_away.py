"""PostgreSQL is restarted, its connections are ended, its processes stand still."""

from functools import partial

import anyio
import pytest

from tests.support.databases import query
from tests.support.waiting import until

from .items import LONGEST_CLEANUP
from .postgres import FAST, IMMEDIATE, SMART
from .rounds import Arena, run_round
from .workers import Worker

CLEANING_UP = """
    SELECT count(*) FROM aioabort_request
    WHERE seen_at IS NOT NULL AND outcome IS NULL
"""
LISTENERS = "application_name = 'aioabort' AND query LIKE 'LISTEN%%'"


async def test_nothing_at_all(arena: Arena) -> None:
    """Without any fault nothing is lost either: the measure of the rest."""
    await run_round(arena, "none", anyio.sleep)


@pytest.mark.parametrize("how", [FAST, IMMEDIATE], ids=["fast", "immediate"])
async def test_restart(arena: Arena, how: int) -> None:
    """The server goes and comes back; "immediate" is a crash, with recovery."""
    name = {FAST: "fast", IMMEDIATE: "immediate"}[how]
    restart = partial(arena.postgres.restart, how=how)
    await run_round(arena, f"PostgreSQL restarted, {name}", restart)


async def test_smart_restart(arena: Arena) -> None:
    """The server waits for its clients, which never leave, and takes no new ones."""

    async def inject(seconds: float) -> None:
        arena.postgres.ask_to_stop(SMART)
        await anyio.sleep(seconds)
        await arena.postgres.stop(FAST)
        await arena.postgres.start()

    await run_round(arena, "PostgreSQL restarted, smart", inject)


async def test_backends_terminated(arena: Arena) -> None:
    """Every connection is ended by the server, once a second."""
    name = "every backend terminated once a second"
    await run_round(arena, name, arena.postgres.end_backends)


async def test_listeners_frozen(arena: Arena) -> None:
    """The backends that listen stand still, without an end of the connection."""

    async def inject(seconds: float) -> None:
        with arena.postgres.frozen(arena.postgres.backends(LISTENERS)):
            await anyio.sleep(seconds)

    await run_round(arena, "listeners frozen (SIGSTOP)", inject)


async def test_celery_gives_up(arena: Arena) -> None:
    """As Celery is configured by default, it gives up results within a tenth of a second.

    A result that Celery loses is lost, and its row says whatever it said before. The
    request is settled all the same, and an abort that was honoured is stored.

    tasks see their aborts, and clean up | outage | they end | it is over
    """
    worker = Worker(
        arena.place,
        "defaults",
        arena.dsn,
        pool="threads",
        concurrency=24,
        result_backend_max_retries=3,
        # In the outage Celery would lose one task after the other, unrun.
        task_track_started=False,
    )
    await worker.start()

    async def inject(seconds: float) -> None:
        await until(lambda: query(arena.dsn, CLEANING_UP) > [(6,)])
        await arena.postgres.restart(max(seconds, LONGEST_CLEANUP))

    try:
        await run_round(
            arena,
            "PostgreSQL restarted, Celery gives up results",
            inject,
            [worker],
            share=0.6,
            # Who ends by itself in the outage, its result lost, is not there any more
            # when it is asked to stop.
            kinds={"raising": 4, "returning": 1, "failing": 1},
            cleaning=1.0,
            longest_cleanup=LONGEST_CLEANUP,
            loses_results=True,
        )
    finally:
        await worker.stop()
