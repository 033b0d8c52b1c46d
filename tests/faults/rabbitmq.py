"""A RabbitMQ of our own, which keeps its queues over a restart."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.programs import free_port, listens, spawn, until_started
from tests.support.waiting import BOUND

from .processes import ended

#: Where Debian keeps the program; what it puts into the path changes to an account of
#: its own, with that account's folders.
DEBIANS = "/usr/lib/rabbitmq/bin"

#: Seconds; Erlang takes its time to stop.
STOP_BOUND = 2 * BOUND


class RabbitMQ:
    """A node without plugins, on the loopback, with an epmd of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port, self._peers, self._epmd_port = (free_port() for _ in range(3))
        self._epmd: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "plugins").write_text("[].\n")

    @staticmethod
    def program() -> str | None:
        """Return where RabbitMQ is, or None."""
        return shutil.which("rabbitmq-server", path=f"{DEBIANS}:{os.environ['PATH']}")

    @property
    def url(self) -> str:
        """Its address, as a broker."""
        return f"amqp://guest:guest@127.0.0.1:{self._port}//"

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        environment = os.environ | self._environment()
        if self._epmd is None:
            # The node would start one that outlives it.
            log = self._folder / "epmd.log"
            self._epmd = spawn("epmd", log=log, env=environment)
            await until_started(self._epmd, lambda: listens(self._epmd_port), log)
        program = self.program()
        assert program is not None
        log = self._folder / "log"
        self._process = spawn(program, log=log, env=environment)
        await until_started(self._process, lambda: listens(self._port), log)

    async def stop(self) -> None:
        """Stop it, its queues written."""
        if self._process is not None:
            self._process.terminate()
            await ended(self._process, STOP_BOUND)
            self._process = None

    def remove(self) -> None:
        """End what is left of it."""
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()

    def _environment(self) -> dict[str, str]:
        folder = self._folder
        return {
            # Its cookie is there.
            "HOME": str(folder),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_DIST_PORT": str(self._peers),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(folder / "logs"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_NODENAME": "aioabort-faults@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1}"
            ),
        }
