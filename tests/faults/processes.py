"""Programs that the suite starts, and that end with it, however it ends."""

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import anyio

BOUND = 30.0
PAUSE = 0.02

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def spawn(
    *command: str | Path, log: Path, dying: int = signal.SIGKILL, **options: Any
) -> "subprocess.Popen[bytes]":
    """Start a program that gets the signal *dying* if this process dies.

    To be called from the main thread: with the thread that starts it, it would die.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A Ctrl-C is for pytest, which then stops things in their order.
            start_new_session=True,
            # One system call, which takes no lock.
            preexec_fn=partial(_libc.prctl, _PR_SET_PDEATHSIG, dying),  # noqa: PLW1509
            **options,
        )


def free_port() -> int:
    """Return a port of the loopback that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody listens on *port* of the loopback."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


async def becomes_true(condition: Callable[[], object], bound: float = BOUND) -> None:
    """Return when *condition* holds; raise TimeoutError if it does not in time."""
    deadline = monotonic() + bound
    while not condition():
        if monotonic() > deadline:
            raise TimeoutError(f"not true within {bound:g} s: {condition}")
        await anyio.sleep(PAUSE)


async def ended(process: "subprocess.Popen[bytes]", bound: float = BOUND) -> None:
    """Wait until *process* has ended; kill it if it does not in time."""
    try:
        await becomes_true(lambda: process.poll() is not None, bound)
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

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {"appendonly": "yes", "save": "", "bind": "127.0.0.1"}
        self._process = spawn(
            *("redis-server", "--port", str(self._port), "--dir", self._folder),
            *(part for key, value in options.items() for part in (f"--{key}", value)),
            log=self._folder / "log",
        )
        await becomes_true(self._answers)

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


class PgBouncer:
    """Debian's PgBouncer, before one server."""

    def __init__(self, folder: Path, mode: str, port: int) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "users").write_text('"postgres" ""\n')
        (folder / "ini").write_text(
            "[databases]\n"
            f"* = host=127.0.0.1 port={port}\n"
            "[pgbouncer]\n"
            f"pool_mode = {mode}\n"
            "listen_addr = 127.0.0.1\n"
            f"listen_port = {self._port}\n"
            "unix_socket_dir =\n"
            "auth_type = trust\n"
            f"auth_file = {folder / 'users'}\n"
            "max_client_conn = 300\n"
            "default_pool_size = 40\n"
            # What a server that was away has earned is a new try, soon.
            "server_login_retry = 1\n"
            "ignore_startup_parameters = extra_float_digits\n"
        )

    @staticmethod
    def program() -> str | None:
        """Return where PgBouncer is, or None."""
        return shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")

    def dsn(self, database: str) -> str:
        """Return the address of *database* through this pooler."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/{database}"

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        # It refuses to run as root.
        account = {"user": "nobody"} if os.geteuid() == 0 else {}
        if account:
            self._folder.chmod(0o755)
        program = self.program()
        assert program is not None
        self._process = spawn(
            program, self._folder / "ini", log=self._folder / "log", **account
        )
        await becomes_true(lambda: listens(self._port))

    async def stop(self) -> None:
        """Stop it, with all that goes through it."""
        if self._process is not None:
            # Which signals have it wait for its clients, depends on its release.
            self._process.kill()
            await ended(self._process)
            self._process = None
