"""Redis servers of a test's own, which it can stop, freeze and start again."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.programs import block_until_started, free_port, spawn
from tests.support.waiting import block_until

PROGRAM = shutil.which("redis-server")


class RedisProgram:
    """A redis-server on the loopback."""

    def __init__(self, folder: Path, *options: str, config: str = "") -> None:
        """*config*: the text of a configuration that the program may rewrite."""
        self.port = free_port()
        self._folder = folder / f"redis-{self.port}"
        self._folder.mkdir()
        self._config = self._folder / "redis.conf"
        self._config.write_text(config)
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket(self) -> Path:
        return self._folder / "socket"

    def client(self, **options: object) -> "redis.Redis":
        return redis.Redis(unix_socket_path=str(self.socket), **options)  # type: ignore[arg-type]

    def start(self) -> None:
        assert PROGRAM is not None
        log = self._folder / "log"
        self._process = spawn(
            *(PROGRAM, self._config, "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--unixsocket", self.socket, "--dir", self._folder, *self._options),
            log=log,
        )
        block_until_started(self._process, self._answers, log)

    def stop(self) -> None:
        """End the program at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def lose_all(self) -> None:
        """Delete what it has written to the disk, while it is stopped."""
        shutil.rmtree(self._folder / "appendonlydir")

    def freeze(self) -> None:
        """Have it answer nothing, and close nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close_connections(self) -> None:
        """Close all connections of clients to its port."""
        with self.client() as server:
            for kind in ("normal", "pubsub"):
                server.execute_command("CLIENT", "KILL", "TYPE", kind)

    def _answers(self) -> bool:
        try:
            with self.client() as server:
                server.execute_command("PING")
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False
        return True


@contextmanager
def redis_program(
    folder: Path, *options: str, config: str = ""
) -> Iterator[RedisProgram]:
    """Run a redis-server with *options*; skip the test if it is not installed."""
    if PROGRAM is None:
        pytest.skip("redis-server is not installed")
    program = RedisProgram(folder, *options, config=config)
    program.start()
    try:
        yield program
    finally:
        program.stop()


@dataclass(frozen=True)
class SentinelServers:
    """A master with a replica, and the sentinel that makes that the master."""

    master: RedisProgram
    replica: RedisProgram
    sentinel: RedisProgram

    @property
    def url(self) -> str:
        """The address for Celery, whose option ``master_name`` is ``mymaster``."""
        return f"sentinel://127.0.0.1:{self.sentinel.port}/0"

    def knows_replica(self) -> bool:
        """Whether the sentinel would find the replica, with the master's data."""
        with self.sentinel.client() as asking, self.replica.client() as replicating:
            known = asking.execute_command("SENTINEL REPLICAS", "mymaster")
            link = replicating.info("replication")["master_link_status"]
            return bool(known) and link == "up"

    def has_failed_over(self) -> bool:
        """Whether the sentinel leads its clients to the replica."""
        with self.sentinel.client() as asking:
            master: Any = asking.sentinel_masters()["mymaster"]
        return bool(master["port"] == self.replica.port) and not master["is_sdown"]


@contextmanager
def redis_with_sentinel(folder: Path) -> Iterator[SentinelServers]:
    """Run a master, a replica and a sentinel; skip the test without redis-server."""
    with redis_program(folder) as master:
        replicated = ("--replicaof", f"127.0.0.1 {master.port}")
        config = (
            f"sentinel monitor mymaster 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds mymaster 500\n"
        )
        with (
            redis_program(folder, *replicated) as replica,
            redis_program(folder, "--sentinel", config=config) as sentinel,
        ):
            servers = SentinelServers(master, replica, sentinel)
            block_until(servers.knows_replica)
            yield servers
