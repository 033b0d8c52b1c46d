"""A PostgreSQL that is started, stopped, crashed, frozen and copied at will."""

import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import anyio

from aioabort.testing import postgres as launcher
from tests.support.databases import query
from tests.support.programs import free_port, spawn, until_started

from .processes import ended

#: How PostgreSQL's documentation calls them.
SMART, FAST, IMMEDIATE = signal.SIGTERM, signal.SIGINT, signal.SIGQUIT

SETTINGS = {
    **launcher.SETTINGS,
    "listen_addresses": "127.0.0.1",
    "max_connections": "300",
    # A crash must lose nothing that was committed; the machine does not crash.
    "full_page_writes": "on",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "hot_standby": "on",
    "autovacuum_naptime": "5s",
}


class Programs:
    """PostgreSQL's programs, in a place where its account may run them."""

    def __init__(self, folder: Path) -> None:
        self.account: str = "nobody" if os.geteuid() == 0 else ""
        self.folder: Path = launcher._programs(folder, self.account)
        # The account must reach what lies below.
        for above in (folder, *folder.parents[:2]):
            if self.account and above.stat().st_uid == os.geteuid():
                above.chmod(above.stat().st_mode | 0o055)
        launcher._change_owner(folder, self.account)

    @cached_property
    def version(self) -> int:
        """The major version."""
        shown = subprocess.check_output([self.folder / "postgres", "--version"])
        return launcher._version_of(Path(shown.decode()))[0]

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run *program* to its end."""
        subprocess.run(
            [self.folder / program, *arguments],
            check=True,
            cwd="/",
            capture_output=True,
            **self.identity(),
        )

    def identity(self) -> dict[str, Any]:
        """Return the arguments that have ``Popen`` run a program as the account."""
        if not self.account:
            return {}
        user, group = launcher._ids(self.account)
        return {"user": user, "group": group, "extra_groups": []}


class Postgres:
    """One server, in a folder of its own."""

    def __init__(
        self, programs: Programs, folder: Path, settings: Mapping[str, str] = {}
    ) -> None:
        self.programs = programs
        self.port = free_port()
        self.environment: dict[str, str] = {}
        self._folder = folder
        self._data = folder / "data"
        self._settings = {**SETTINGS, **settings, "port": str(self.port)}
        self._process: subprocess.Popen[bytes] | None = None
        launcher._change_owner(folder, programs.account)

    def create(self) -> None:
        """Make it an empty server."""
        self.programs.run("initdb", "-D", self._data, *launcher.INITDB)

    def copy(self, primary: "Postgres") -> None:
        """Make it a standby of *primary*."""
        source = f"host=127.0.0.1 port={primary.port} user=postgres"
        options = ("--write-recovery-conf", "--checkpoint=fast", "--no-sync")
        self.programs.run("pg_basebackup", "-D", self._data, "-d", source, *options)

    def dsn(self, database: str = "postgres") -> str:
        """Return the address of *database*."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    async def start(self) -> None:
        """Start it, and wait until it takes connections."""
        status, log = self._data / "postmaster.pid", self._folder / "log"
        self._process = spawn(
            *(self.programs.folder / "postgres", "-D", self._data),
            *("-k", self._folder),
            *(f"-c{name}={value}" for name, value in self._settings.items()),
            log=log,
            dying=IMMEDIATE,
            cwd="/",
            env=os.environ | self.environment,
            **self.programs.identity(),
        )

        def is_ready() -> bool:
            return status.exists() and status.read_text().rstrip().endswith("ready")

        await until_started(self._process, is_ready, log)

    def ask_to_stop(self, how: int) -> None:
        """Begin a shutdown."""
        assert self._process is not None
        self._process.send_signal(how)

    async def stop(self, how: int = FAST) -> None:
        """Shut it down, and wait for its end."""
        if self._process is not None:
            self.ask_to_stop(how)
            await ended(self._process)
            self._process = None

    async def restart(self, seconds: float, how: int = FAST) -> None:
        """Shut it down, and start it again after so many seconds."""
        await self.stop(how)
        await anyio.sleep(seconds)
        await self.start()

    async def end_backends(self, seconds: float) -> None:
        """End each client's connection once a second, at least twice."""
        for _ in range(max(2, round(seconds))):
            self.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            await anyio.sleep(1)

    def promote(self) -> None:
        """Make a primary of a standby."""
        self.programs.run("pg_ctl", "promote", "-D", self._data)

    def query(
        self, statement: str, *values: object, database: str = "postgres"
    ) -> list[tuple[Any, ...]]:
        """Run one statement, on a connection of its own; return its rows."""
        return query(self.dsn(database), statement, *values)

    def backends(self, condition: str) -> list[int]:
        """Return the pids of the client backends for which *condition* holds."""
        rows = self.query(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'"
            f" AND pid <> pg_backend_pid() AND ({condition})"
        )
        return [pid for (pid,) in rows]

    @contextmanager
    def frozen(self, pids: list[int]) -> Any:
        """Stop the processes *pids* for the time of the block."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                if Path(f"/proc/{pid}").exists():
                    os.kill(pid, signal.SIGCONT)
