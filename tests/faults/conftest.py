"""The arena of all rounds, and the report at the end."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from kombu import pools

from tests.support.databases import create_tables_async, query
from tests.support.full_queue import SMALL_QUEUE

from . import leaks
from .postgres import Postgres, Programs
from .processes import Redis
from .report import report
from .rounds import SIZES, Arena
from .workers import Diary, Place, Worker, folder_transport

ARENA = pytest.StashKey[Arena]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this suite."""
    group = parser.getgroup("faults")
    group.addoption("--quick", action="store_true", help="about six minutes")
    group.addoption(
        "--soak", nargs="?", const=3600.0, type=float, help="a steady load, seconds"
    )
    group.addoption("--walk", type=float, help="a random walk, seconds")
    group.addoption(
        "--other-python", default=sys.executable, help="of every second worker"
    )
    group.addoption("--record", type=Path, help="write the report there, too")
    group.addoption("--seed", default=6, type=int, help="of the load")


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Run the soak and the walk alone, and only when asked for."""
    alone = {name for name in ("soak", "walk") if config.getoption(name) is not None}

    def is_wanted(item: pytest.Item) -> bool:
        name = item.path.stem.removeprefix("test_")
        return name in alone if alone else name not in {"soak", "walk"}

    others = [item for item in items if not is_wanted(item)]
    items[:] = [item for item in items if item not in others]
    config.hook.pytest_deselected(items=others)


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder into which the accounts of servers can look."""
    with TemporaryDirectory(prefix="aioabort-faults-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


@pytest.fixture(scope="session")
def arena(
    folder: Path,
    pytestconfig: pytest.Config,
    server: object,  # noqa: ARG001
) -> Iterator[Arena]:
    """A PostgreSQL, a broker, and two workers that serve most rounds.

    The server of the other tests is there before and after it, and so is its pipe.
    """
    (folder / "programs").mkdir()
    (folder / "postgres").mkdir()
    programs = Programs(folder / "programs")
    # A queue of notifications that can be filled, where its size can be set.
    small = SMALL_QUEUE if programs.version >= 17 else {}
    postgres = Postgres(programs, folder / "postgres", small)
    redis = None
    if Redis.is_installed():
        (folder / "redis").mkdir()
        redis = Redis(folder / "redis")
    arena = Arena(
        folder=folder,
        programs=programs,
        postgres=postgres,
        redis=redis,
        place=Place(
            folder,
            _broker(folder, redis),
            Diary(folder),
            pytestconfig.getoption("other_python"),
        ),
        size=SIZES["quick" if pytestconfig.getoption("quick") else "full"],
        seed=pytestconfig.getoption("seed"),
    )
    pytestconfig.stash[ARENA] = arena
    postgres.create()
    asyncio.run(_start(arena))
    before = leaks.Belongings.now()
    yield arena
    # Of Celery's producers, whose apps do not close them.
    pools.reset()
    arena.leaks += leaks.of_workers(arena)
    arena.leaks += leaks.of_rows(arena.dsn)
    arena.leaks += leaks.of_this_process(before)
    asyncio.run(_stop(arena))
    if arena.leaks:
        pytest.fail("\n".join(["left behind:", *arena.leaks]))


async def _start(arena: Arena) -> None:
    await arena.postgres.start()
    if arena.redis is not None:
        await arena.redis.start()
    await create_database(arena.postgres, arena.database)
    arena.workers.append(Worker(arena.place, "prefork", arena.dsn))
    # Every fault meets both result backends, side by side on the same tables.
    arena.workers.append(
        Worker(
            arena.place,
            "threads",
            arena.dsn,
            pool="threads",
            concurrency=10,
            result_backend=f"aioabort+{arena.dsn}",
        )
    )
    async with asyncio.TaskGroup() as group:
        for worker in arena.workers:
            group.create_task(worker.start())


async def _stop(arena: Arena) -> None:
    async with AsyncExitStack() as stack:
        stack.push_async_callback(arena.postgres.stop)
        if arena.redis is not None:
            stack.push_async_callback(arena.redis.stop)
        stack.callback(lambda: arena.leaks.extend(leaks.of_connections(arena.postgres)))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        for worker in arena.workers:
            group.create_task(worker.stop())


async def create_database(postgres: Postgres, name: str) -> None:
    """Create a database with Celery's tables and aioabort's."""
    query(postgres.dsn(), f"CREATE DATABASE {name}")
    await create_tables_async(postgres.dsn(name))


def _broker(folder: Path, redis: Redis | None) -> dict[str, Any]:
    if redis is not None:
        return {"broker_url": redis.url}
    return folder_transport(folder)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the report."""
    if (arena := config.stash.get(ARENA, None)) is not None:
        terminalreporter.section("fault suite")
        lines = list(report(arena))
        for line in lines:
            terminalreporter.write_line(line)
        if path := config.getoption("record"):
            path.write_text("".join(f"{line}\n" for line in lines))
