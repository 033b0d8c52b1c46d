"""Programs that the suite starts, and that end with it, however it ends."""

import re
import shutil
import socket
import subprocess
from pathlib import Path

from tests.support.programs import free_port, spawn, until_started
from tests.support.waiting import BOUND, until


async def ended(process: "subprocess.Popen[bytes]", bound: float = BOUND) -> None:
    """Wait until *process* has ended; kill it if it does not in time."""
    try:
        await until(lambda: process.poll() is not None, bound)
    except TimeoutError:
        process.kill()
        process.wait()
        raise


def children(pid: int) -> list[int]:
    """Return the processes that *pid* has started and that still run."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, state, parent = _fields(stat.read_text())
        except OSError:
            continue
        if parent == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def _fields(stat: str) -> tuple[str, str, int]:
    # The name stands in parentheses, and may contain some.
    name, _, rest = stat.rpartition(")")
    state, parent, *_ = rest.split()
    return name, state, int(parent)


def usage(pid: int) -> dict[str, int]:
    """Return how many files and threads *pid* has open, and its memory in kB."""
    status = Path(f"/proc/{pid}/status").read_text()
    numbers = dict(re.findall(r"(\w+):\s+(\d+)", status))
    return {
        "files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(numbers["Threads"]),
        "memory": int(numbers["VmRSS"]),
    }


class Redis:
    """A Redis of our own, which keeps its data over a restart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def is_installed() -> bool:
        """Whether there is a redis-server on this machine."""
        return shutil.which("redis-server") is not None

    @property
    def url(self) -> str:
        """Its address, as a broker."""
        return f"redis://127.0.0.1:{self._port}/0"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {"appendonly": "yes", "save": "", "bind": "127.0.0.1"}
        log = self._folder / "log"
        self._process = spawn(
            *("redis-server", "--port", str(self._port), "--dir", self._folder),
            *(part for key, value in options.items() for part in (f"--{key}", value)),
            log=log,
        )
        await until_started(self._process, self._answers, log)

    async def stop(self) -> None:
        """Stop it, its data written."""
        if self._process is not None:
            self._process.terminate()
            await ended(self._process)
            self._process = None

    def _answers(self) -> bool:
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", self._port)):
                return False
            connection.sendall(b"PING\r\n")
            return connection.recv(5) == b"+PONG"
