"""The broker goes away and comes back."""

from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from .processes import Redis
from .rabbitmq import RabbitMQ
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
        # The lock under which a worker looks for them outlives Redis's restart.
        "unacked_mutex_expire": 5,
    },
}


@pytest.mark.skipif(not Redis.is_installed(), reason="redis-server is not installed")
async def test_redis_restarts(arena: Arena) -> None:
    """Redis is restarted with its data; tasks may be delivered twice, or never.

    kombu takes a message from a queue, and then notes it as not acknowledged: one that
    Redis goes away between has been lost. A second delivery has STARTED written over
    the result of the first one, before Celery 5.7. Workers are started again that Celery has
    ended when it could not reconnect.
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
        async with anyio.create_task_group() as starts:
            for worker in workers:
                starts.start_soon(worker.start)
        group = await stack.enter_async_context(anyio.create_task_group())
        for worker in workers:
            group.start_soon(worker.keep_alive)
        await run_round(
            arena,
            "Redis restarted",
            inject,
            workers,
            loses_messages=True,
            loses_results=True,
        )
        group.cancel_scope.cancel()


@pytest.mark.skipif(RabbitMQ.program() is None, reason="no rabbitmq-server here")
async def test_rabbitmq_restarts(arena: Arena) -> None:
    """RabbitMQ is restarted with its queues; tasks may be delivered twice."""
    rabbitmq = RabbitMQ(arena.subfolder("rabbitmq"))
    async with AsyncExitStack() as stack:
        stack.callback(rabbitmq.remove)
        stack.push_async_callback(rabbitmq.stop)
        await rabbitmq.start()
        worker = Worker(arena.place, "rabbitmq", arena.dsn, broker_url=rabbitmq.url)
        stack.push_async_callback(worker.stop)
        await worker.start()

        async def inject(seconds: float) -> None:
            await rabbitmq.stop()
            await anyio.sleep(seconds)
            await rabbitmq.start()

        await run_round(
            arena,
            "RabbitMQ restarted",
            inject,
            [worker],
            share=0.6,
            loses_results=True,
        )
