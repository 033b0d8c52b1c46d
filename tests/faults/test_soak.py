"""An hour at a steady load: what is in use does not grow. Run by ``--soak``."""

import logging
from dataclasses import replace
from statistics import median

import anyio
import pytest

from tests.support.databases import query

from .load import clock
from .processes import children, usage
from .rounds import Arena, run_round

#: Seconds of load between two measurements.
PERIOD = 50.0

#: How much more the last quarter of the run may use than the second one: the first
#: fills pools and caches.
GROWTH = 1.2

SIZES = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname = ANY(%s)"
TABLES = ["aioabort_request", "celery_taskmeta"]
CLEAN = """
    WITH gone AS (DELETE FROM aioabort_request WHERE outcome IS NOT NULL)
    DELETE FROM celery_taskmeta
"""

logger = logging.getLogger(__name__)


async def test_nothing_grows(arena: Arena, pytestconfig: pytest.Config) -> None:
    """Memory, connections and tables of the end are those of the beginning."""
    seconds = pytestconfig.getoption("soak")
    assert seconds is not None, "only collected with --soak"
    arena.size = replace(arena.size, fault=PERIOD)
    samples: list[dict[str, float]] = []
    end = clock() + seconds
    while clock() < end or len(samples) < 4:
        name = f"soak {len(samples)}"
        await run_round(arena, name, anyio.sleep, share=0.25)
        samples.append(_sample(arena))
        logger.info("%s: %s", name, samples[-1])
        # As Celery's and aioabort's own cleaning do, at a pace that an hour can show.
        query(arena.dsn, CLEAN)
        arena.diary.forget()

    quarter = len(samples) // 4
    for what in samples[0]:
        early = median(sample[what] for sample in samples[quarter : 2 * quarter])
        late = median(sample[what] for sample in samples[-quarter:])
        arena.notes.append(f"soak: {what} {early:,.0f}, at the end {late:,.0f}")
        assert late <= early * GROWTH, (what, early, late)


def _sample(arena: Arena) -> dict[str, float]:
    pids = [
        pid for worker in arena.workers for pid in (worker.pid, *children(worker.pid))
    ]
    [(size,)] = query(arena.dsn, SIZES, TABLES)
    return {
        "kB of memory": sum(usage(pid)["memory"] for pid in pids),
        "files": sum(usage(pid)["files"] for pid in pids),
        "connections": len(arena.postgres.backends("true")),
        "bytes of tables": float(size),
    }
