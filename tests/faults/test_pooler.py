"""PgBouncer stands between all programs and PostgreSQL, and is restarted."""

from typing import Any

import anyio
import pytest

from tests.support.pgbouncer import PgBouncer, needs_pgbouncer
from tests.support.waiting import until

from .rounds import Arena, run_round
from .workers import Worker

#: Of PgBouncer; in seconds: it soon tries to log in again, after the server was away.
SETTINGS = (
    "max_client_conn = 300",
    "default_pool_size = 40",
    "server_login_retry = 1",
    "ignore_startup_parameters = extra_float_digits",
)

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


@needs_pgbouncer
@pytest.mark.parametrize("mode", MODES)
async def test_pgbouncer_restarts(arena: Arena, mode: str) -> None:
    """The pooler goes and comes back; in transaction mode, nothing is ever notified."""
    folder = arena.subfolder(f"pgbouncer-{mode}")
    bouncer = PgBouncer(folder, arena.dsn, mode, *SETTINGS)
    bouncer.launch()
    await until(bouncer.is_listening)
    dsn = bouncer.dsn
    no_cache = {"aioabort_dsn": f"{dsn}?statement_cache_size=0"}
    settings = MODES[mode] | (no_cache if mode == "transaction" else {})
    worker = Worker(arena.place, f"pgbouncer-{mode}", dsn, **settings)
    await worker.start()

    async def inject(seconds: float) -> None:
        bouncer.stop()
        await anyio.sleep(seconds)
        bouncer.launch()
        await until(bouncer.is_listening)

    try:
        name = f"PgBouncer restarted, {mode} mode"
        await run_round(arena, name, inject, [worker], share=0.6)
    finally:
        await worker.stop()
        bouncer.stop()
