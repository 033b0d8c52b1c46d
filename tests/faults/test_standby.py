"""The primary dies, and its standby takes over."""

from tests.support.waiting import until

from .conftest import create_database
from .postgres import IMMEDIATE, Postgres
from .rounds import Arena, answers, run_round
from .workers import Worker

IN_SYNC = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"


async def test_failover(arena: Arena) -> None:
    """The clients find the new primary; what was committed is there.

    The standby is a synchronous one: PostgreSQL itself loses commits otherwise.
    """
    primary = Postgres(arena.programs, arena.subfolder("primary"))
    standby = Postgres(arena.programs, arena.subfolder("standby"))
    primary.create()
    await primary.start()
    await create_database(primary, arena.database)
    standby.copy(primary)
    await standby.start()
    primary.query("ALTER SYSTEM SET synchronous_standby_names = '*'")
    primary.query("SELECT pg_reload_conf()")
    await until(lambda: primary.query(IN_SYNC))
    hosts = [f"127.0.0.1:{server.port}" for server in (primary, standby)]
    writable = "target_session_attrs=read-write"
    celerys_hosts = "&".join(f"host={host}" for host in hosts)
    worker = Worker(
        arena.place,
        "failover",
        standby.dsn(arena.database),
        result_backend="db+postgresql+psycopg://postgres@/"
        f"{arena.database}?{celerys_hosts}&{writable}",
        aioabort_dsn=f"postgresql://postgres@{','.join(hosts)}/"
        f"{arena.database}?{writable}",
    )
    await worker.start()

    async def inject(_seconds: float) -> None:
        await primary.stop(IMMEDIATE)
        standby.promote()
        await answers(standby.dsn())

    try:
        await run_round(
            arena,
            "standby promoted",
            inject,
            [worker],
            dsn=standby.dsn(arena.database),
            share=0.8,
        )
    finally:
        await worker.stop()
        await standby.stop()
        await primary.stop()
