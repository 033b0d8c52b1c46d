"""The clock is stepped: nothing here may depend on what it says."""

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from . import items
from .rounds import Arena, run_round
from .workers import Worker

#: For a program in C: with it, and the monotonic clock left alone, Python's
#: ``time.sleep()`` fails.
LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
SUBSTITUTE = Path(__file__).with_name("clock")

#: Seconds: half an hour forth, and back beyond where it was.
STEPS = ("+1800", "-1800", "+0")

#: When a task is tried again is for Celery to tell, by that clock.
KINDS = {kind: share for kind, share in items.KINDS.items() if kind != "retrying"}


@pytest.fixture
def offset(arena: Arena) -> Iterator[Path]:
    """The file that says by how much the clock is wrong."""
    path = arena.folder / "offset"
    set_clock(path, "+0")
    yield path
    path.unlink()


def of_python(offset: Path) -> dict[str, str]:
    """Return what makes ``time.time()`` believe the file *offset*."""
    return {"FAKETIME_TIMESTAMP_FILE": str(offset), "PYTHONPATH": str(SUBSTITUTE)}


def of_program(offset: Path) -> dict[str, str]:
    """Return what makes a whole process believe the file *offset*."""
    return {
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "LD_PRELOAD": str(LIBRARIES[0]),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def set_clock(offset: Path, seconds: str) -> None:
    """Replace the file *offset*: a process that reads it never finds it empty."""
    new = offset.with_suffix(".new")
    new.write_text(seconds)
    new.chmod(0o644)
    new.replace(offset)


async def step(offset: Path, seconds: float) -> None:
    """Step the clock, in equal parts of *seconds*."""
    for steps in STEPS:
        set_clock(offset, steps)
        await anyio.sleep(seconds / len(STEPS))


@pytest.mark.parametrize("pool", ["prefork", "threads"])
async def test_of_a_worker(arena: Arena, offset: Path, pool: str) -> None:
    """A worker's clock jumps; its aborts do not come later."""
    worker = Worker(
        arena.place,
        f"clock-{pool}",
        arena.dsn,
        environment=of_python(offset),
        pool=pool,
        concurrency=4,
    )
    await worker.start()
    try:
        await run_round(
            arena,
            f"clock of a {pool} worker stepped",
            lambda seconds: step(offset, seconds),
            [worker],
            share=0.5,
            kinds=KINDS,
        )
    finally:
        await worker.stop()


@pytest.mark.skipif(not LIBRARIES, reason="libfaketime is not installed")
async def test_of_the_server(arena: Arena, offset: Path) -> None:
    """The server's clock jumps, back too: requests have moments out of order."""

    async def inject(seconds: float) -> None:
        await arena.postgres.stop()
        arena.postgres.environment = of_program(offset)
        await arena.postgres.start()
        await step(offset, seconds)
        await arena.postgres.stop()
        arena.postgres.environment = {}
        await arena.postgres.start()

    await run_round(arena, "clock of PostgreSQL stepped", inject)
