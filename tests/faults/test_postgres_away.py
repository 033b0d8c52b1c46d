"""PostgreSQL is restarted, its connections are ended, its processes stand still."""

import signal
from pathlib import Path

import anyio
import pytest

from .postgres import FAST, IMMEDIATE, SMART, query
from .processes import BOUND, ended
from .rounds import Arena, answers, run_round

LISTENERS = "application_name = 'aioabort' AND query LIKE 'LISTEN%%'"


async def test_nothing_at_all(arena: Arena) -> None:
    """Without any fault nothing is lost either: the measure of the rest."""
    await run_round(arena, "none", anyio.sleep)


@pytest.mark.parametrize("how", [FAST, IMMEDIATE], ids=["fast", "immediate"])
async def test_restart(arena: Arena, how: int) -> None:
    """The server goes and comes back; "immediate" is a crash, with recovery."""

    async def inject(seconds: float) -> None:
        await arena.postgres.stop(how)
        await anyio.sleep(seconds)
        await arena.postgres.start()

    name = {FAST: "fast", IMMEDIATE: "immediate"}[how]
    await run_round(arena, f"PostgreSQL restarted, {name}", inject)


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

    async def inject(seconds: float) -> None:
        for _ in range(max(2, round(seconds))):
            arena.postgres.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            await anyio.sleep(1)

    await run_round(arena, "every backend terminated once a second", inject)


async def test_listeners_frozen(arena: Arena) -> None:
    """The backends that listen stand still, without an end of the connection."""

    async def inject(seconds: float) -> None:
        with arena.postgres.frozen(arena.postgres.backends(LISTENERS)):
            await anyio.sleep(seconds)

    await run_round(arena, "listeners frozen (SIGSTOP)", inject)
