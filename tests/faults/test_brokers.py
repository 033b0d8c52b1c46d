"""The broker goes away and comes back."""

import os
import shutil
import subprocess

import anyio
import pytest

from .processes import Redis
from .rounds import Arena, run_round
from .workers import Worker


@pytest.mark.skipif(not Redis.is_installed(), reason="redis-server is not installed")
async def test_redis_restarts(arena: Arena) -> None:
    """Redis is restarted with its data; tasks may be delivered twice."""

    async def inject(seconds: float) -> None:
        assert arena.redis is not None
        await arena.redis.stop()
        await anyio.sleep(seconds)
        await arena.redis.start()

    await run_round(arena, "Redis restarted", inject, loses_results=True)


async def test_rabbitmq_connections_closed(arena: Arena) -> None:
    """RabbitMQ closes all connections, as it does when it restarts.

    Only those of a virtual host of our own: the server is the machine's.
    """
    host = f"aioabort-faults-{os.getpid()}"
    _rabbitmqctl("add_vhost", host)
    try:
        _rabbitmqctl("set_permissions", "-p", host, "guest", ".*", ".*", ".*")
        url = f"amqp://guest:guest@127.0.0.1:5672/{host}"
        worker = Worker(arena.place, "rabbitmq", arena.dsn, broker_url=url)
        await worker.start()

        async def inject(seconds: float) -> None:
            for _ in range(max(2, round(seconds))):
                _rabbitmqctl("close_all_connections", "--vhost", host, "fault suite")
                await anyio.sleep(1)

        try:
            await run_round(
                arena,
                "RabbitMQ's connections closed",
                inject,
                [worker],
                share=0.6,
                loses_results=True,
            )
        finally:
            await worker.stop()
    finally:
        _rabbitmqctl("delete_vhost", host)


def _rabbitmqctl(*arguments: str) -> None:
    program = shutil.which("rabbitmqctl", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("rabbitmqctl is not installed")
    command = [program, "--quiet", "--timeout", "20", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    if done.returncode:
        pytest.skip(f"no RabbitMQ to be controlled here: {done.stderr.strip()[:200]}")
