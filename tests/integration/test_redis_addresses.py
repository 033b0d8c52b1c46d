"""Each way in which Celery's result backend leads to a Redis, and writes to it."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.cluster
from anyio import fail_after
from celery import Celery
from celery.backends.redis import RedisBackend

from aioabort import AbortClient
from aioabort.client.redis_results import RedisResults
from tests.integration.steps import are_awaited, end, listening, new_ids, waiting_for
from tests.support.programs import free_port
from tests.support.redis_servers import (
    RedisProgram,
    redis_program,
    redis_with_sentinel,
)
from tests.support.waiting import BOUND, NEVER_POLLED, until

# Celery's own backend, with a redis-py that is newer.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated setex"),
    pytest.mark.filterwarnings("ignore:.*ssl_cert_reqs=CERT_NONE"),
]


def make(dsn: str, backend: str, **settings: Any) -> Celery:
    app = Celery("tests", broker="memory://", backend=backend, set_as_current=False)
    app.conf.update(aioabort_dsn=dsn, aioabort_poll_interval=NEVER_POLLED)
    app.conf.update(result_expires=60, **settings)
    return app


async def check(app: Celery, task_id: str, value: object = "value") -> None:
    """Await a task whose end is published, and read what is stored."""
    async with AbortClient(app) as client:
        assert isinstance(client._connections.results, RedisResults)
        await listening(client)
        waiting = await waiting_for(client, task_id)
        await end(app, task_id, value)
        with fail_after(BOUND):
            assert await waiting == value
            assert (await client.snapshot(task_id)).result == value


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[RedisProgram]:
    with redis_program(tmp_path) as program:
        yield program


async def test_a_unix_socket(empty_dsn: str, plain: RedisProgram, task_id: str) -> None:
    await check(make(empty_dsn, f"redis+socket://{plain.socket}"), task_id)


async def test_a_database_with_a_name_and_a_password(
    empty_dsn: str, plain: RedisProgram, task_id: str
) -> None:
    with plain.client() as admin:
        admin.acl_setuser(
            *("ann", True, False, ["+p:w@"]),
            keys=["*"],
            channels=["*"],
            categories=["+@all"],
        )
    url = f"redis://ann:p%3Aw%40@127.0.0.1:{plain.port}/3"
    await check(make(empty_dsn, url), task_id)
    with plain.client(db=3) as admin:
        assert admin.exists(f"celery-task-meta-{task_id}")


@pytest.mark.parametrize(
    "settings",
    [
        {"result_backend_transport_options": {"global_keyprefix": "mine"}},
        {"result_serializer": "pickle", "accept_content": ["pickle"]},
        {"result_serializer": "yaml", "accept_content": ["yaml"]},
        {"result_extended": True},
        {"redis_socket_timeout": 0.5, "redis_retry_on_timeout": True},
        {"redis_backend_health_check_interval": 1, "redis_socket_keepalive": True},
        # Celery before 5.7 ignores it.
        {"result_compression": "gzip"},
    ],
    ids=["prefix", "pickle", "yaml", "extended", "timeouts", "health", "gzip"],
)
async def test_what_celery_writes_is_read(
    empty_dsn: str, plain: RedisProgram, task_id: str, settings: dict[str, Any]
) -> None:
    await check(make(empty_dsn, plain.url, **settings), task_id, {"n": [1]})


async def test_text_instead_of_bytes(
    empty_dsn: str, plain: RedisProgram, task_id: str
) -> None:
    await check(make(empty_dsn, f"{plain.url}?decode_responses=true"), task_id)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of the loopback, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate", folder / "key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes"),
            *("-out", paths[0], "-keyout", paths[1], "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return paths


@pytest.mark.parametrize("checked", ["required", "CERT_NONE"])
async def test_tls(
    empty_dsn: str,
    tmp_path: Path,
    certificate: tuple[Path, Path],
    task_id: str,
    checked: str,
) -> None:
    cert, key = certificate
    port = free_port()
    options = (
        *("--tls-port", str(port), "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(cert), "--tls-key-file", str(key)),
    )
    url = f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs={checked}"
    if checked == "required":
        url += f"&ssl_ca_certs={cert}"
    with redis_program(tmp_path, *options):
        await check(make(empty_dsn, url), task_id)


async def test_a_failover_by_sentinel(
    empty_dsn: str, tmp_path: Path, task_id: str
) -> None:
    """The waits go on at the new master, and an end that is stored there is found.

    wait() | the master ends | its replica is made the master | task ends: value
    """
    with redis_with_sentinel(tmp_path) as servers:
        app = make(
            empty_dsn,
            servers.url,
            result_backend_transport_options={"master_name": "mymaster"},
        )
        async with AbortClient(app) as client:
            assert isinstance(client._connections.results, RedisResults)
            await listening(client)
            waiting = await waiting_for(client, task_id)
            servers.master.stop()
            await until(lambda: client.health().mode == "poll")
            await until(servers.has_failed_over)
            await end(app, task_id, "value")
            with fail_after(BOUND):
                assert await waiting == "value"
            await listening(client)


class ClusterBackend(RedisBackend):
    """Reads a cluster; redis-py publishes nothing in a pipeline to one."""

    def _create_client(self, **params: Any) -> Any:
        return redis.cluster.RedisCluster(host=params["host"], port=params["port"])

    def _set(self, key: Any, value: Any, expires: Any = None) -> None:
        self.client.set(key, value, ex=expires or self.expires)


async def test_a_cluster_is_read_by_the_client_of_its_backend(
    empty_dsn: str, tmp_path: Path
) -> None:
    """Celery has no backend for one: results are polled, from all slots."""
    with redis_program(tmp_path, "--cluster-enabled", "yes") as server:
        with server.client() as admin:
            admin.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            await until(lambda: admin.cluster("INFO")["cluster_state"] == "ok")
        backend = f"{__name__}:{ClusterBackend.__name__}"
        app = make(empty_dsn, backend, aioabort_poll_interval=0.1)
        app.conf.update(redis_host="127.0.0.1", redis_port=server.port)
        task_ids = new_ids(3)
        async with AbortClient(app) as client:
            assert not isinstance(client._connections.results, RedisResults)
            waiting = [asyncio.create_task(client.wait(each)) for each in task_ids]
            await are_awaited(client, 3)
            for task_id in task_ids:
                await end(app, task_id, task_id)
            with fail_after(BOUND):
                assert await asyncio.gather(*waiting) == task_ids
