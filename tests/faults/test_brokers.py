"""The broker goes away and comes back."""

import os
import shutil
import subprocess
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from .processes import Redis
from .rounds import Arena, run_round
from .workers import Worker

#: A worker of Celery's that has fetched all it may when Redis goes away hears of it by
#: its remote control only: without, it waits for ever for messages to be acknowledged.
#: And what it had fetched comes again after a while, by default an hour.
OF_REDIS: dict[str, Any] = {
    "worker_enable_remote_control": True,
    "broker_transport_options": {
        "visibility_timeout": 10,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
}


@pytest.mark.skipif(not Redis.is_installed(), reason="redis-server is not installed")
async def test_redis_restarts(arena: Arena) -> None:
    """Redis is restarted with its data; tasks may be delivered twice.

    Workers are started again that Celery has ended when it could not reconnect.
    """
    workers = [
        Worker(arena.place, "redis", arena.dsn, **OF_REDIS),
        Worker(
            *(arena.place, "redis-threads", arena.dsn),
            pool="threads",
            concurrency=10,
            **OF_REDIS,
        ),
    ]

    async def inject(seconds: float) -> None:
        assert arena.redis is not None
        await arena.redis.stop()
        await anyio.sleep(seconds)
        await arena.redis.start()

    async with AsyncExitStack() as stack:
        for worker in workers:
            stack.push_async_callback(worker.stop)
            await worker.start()
        group = await stack.enter_async_context(anyio.create_task_group())
        for worker in workers:
            group.start_soon(worker.keep_alive)
        await run_round(arena, "Redis restarted", inject, workers)
        group.cancel_scope.cancel()


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
