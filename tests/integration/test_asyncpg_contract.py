"""What aioabort uses of asyncpg without a promise of asyncpg's."""

import asyncio
from typing import Any

import asyncpg
from anyio import to_thread

from aioabort.dsn import parse_dsn
from aioabort.postgres.connection import connect
from aioabort.timing import Timing


async def test_a_pool_knows_its_loop(dsn: str) -> None:
    """``Pool._loop`` has no public name; ``borrow_pool()`` compares it."""

    async def new_pool() -> Any:
        return await asyncpg.create_pool(dsn, min_size=0)

    assert (await new_pool())._loop is asyncio.get_running_loop()
    other = await to_thread.run_sync(asyncio.run, new_pool())
    assert other._loop is not asyncio.get_running_loop()


async def test_a_second_listen_with_one_callback_changes_nothing(dsn: str) -> None:
    """``keep_listening()`` calls LISTEN again after each probe of a pooler."""
    payloads: list[str] = []

    def deliver(*notification: Any) -> None:
        payloads.append(notification[3])

    async with connect(parse_dsn(dsn, setting="dsn"), Timing()) as connection:
        for _ in range(2):
            await connection.listen("channel", deliver)
        await connection.execute("NOTIFY channel, 'payload'")
        await connection.fetch("SELECT 1")
    assert payloads == ["payload"]
