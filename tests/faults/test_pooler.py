"""PgBouncer stands between everybody and PostgreSQL, and is restarted."""

from typing import Any

import anyio
import pytest

from .processes import PgBouncer
from .rounds import Arena, run_round
from .workers import Worker

MODES: dict[str, dict[str, Any]] = {
    # Statements that are prepared on one connection are unknown on the next.
    "transaction": {
        "database_engine_options": {
            "pool_size": 20,
            "connect_args": {"prepare_threshold": None},
        },
    },
    "session": {},
}


@pytest.mark.skipif(not PgBouncer.program(), reason="pgbouncer is not installed")
@pytest.mark.parametrize("mode", MODES)
async def test_pgbouncer_restarts(arena: Arena, mode: str) -> None:
    """The pooler goes and comes back; in transaction mode, nothing is ever notified."""
    bouncer = PgBouncer(arena.subfolder(f"pgbouncer-{mode}"), mode, arena.postgres.port)
    await bouncer.start()
    dsn = bouncer.dsn(arena.database)
    no_cache = {"aioabort_dsn": f"{dsn}?statement_cache_size=0"}
    settings = MODES[mode] | (no_cache if mode == "transaction" else {})
    worker = Worker(arena.place, f"pgbouncer-{mode}", dsn, **settings)
    await worker.start()

    async def inject(seconds: float) -> None:
        await bouncer.stop()
        await anyio.sleep(seconds)
        await bouncer.start()

    try:
        name = f"PgBouncer restarted, {mode} mode"
        await run_round(arena, name, inject, [worker], share=0.8)
    finally:
        await worker.stop()
        await bouncer.stop()
