"""A process that stands for many workers: it listens as often as they would."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg

from aioabort.postgres.notifications import decode_notification


@asynccontextmanager
async def listeners(dsn: str, channel: str, number: int) -> AsyncGenerator[None]:
    """Have *number* connections listen for the time of the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, dsn, channel, str(number)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        await process.wait()


async def listen(dsn: str, channel: str, number: str) -> None:
    """Be that process."""
    connections = []
    for _ in range(int(number)):
        connection = await asyncpg.connect(dsn)
        await connection.add_listener(channel, _hear)
        connections.append(connection)
    print("ready", flush=True)
    await asyncio.Event().wait()


def _hear(*arguments: object) -> None:
    # As an agent does with what is of no concern to it.
    decode_notification(str(arguments[-1]))


if __name__ == "__main__":
    asyncio.run(listen(*sys.argv[1:]))
