"""A PgBouncer of the tests' own, in front of one PostgreSQL."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg.conninfo
import pytest

from tests.support.programs import free_port, listens, spawn
from tests.support.waiting import block_until

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

needs_pgbouncer = pytest.mark.skipif(
    PROGRAM is None, reason="pgbouncer is not installed"
)


class PgBouncer:
    """A PgBouncer that keeps its configuration in *folder*, before the server of *dsn*."""

    def __init__(self, folder: Path, dsn: str, mode: str, *more: str) -> None:
        self._folder = folder
        self._target = psycopg.conninfo.conninfo_to_dict(dsn)
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.configure(mode, *more)

    @property
    def dsn(self) -> str:
        """The address of the database, through the pooler."""
        return self.dsn_of("anybody")

    def dsn_of(self, login: str) -> str:
        """Return the database's address for a user, or for a user and a password."""
        return f"postgresql://{login}@127.0.0.1:{self._port}/{self._target['dbname']}"

    def configure(self, mode: str, *more: str) -> None:
        """Write the configuration: few server connections, which *mode* lends."""
        target = " ".join(
            f"{name}={self._target[name]}"
            for name in ("host", "port", "dbname", "user", "password")
            if name in self._target
        )
        (self._folder / "pgbouncer.ini").write_text(
            f"[databases]\n{self._target['dbname']} = {target}\n"
            "[pgbouncer]\n"
            "listen_addr = 127.0.0.1\n"
            f"listen_port = {self._port}\n"
            "unix_socket_dir =\n"
            "auth_type = any\n"
            f"pool_mode = {mode}\n"
            f"default_pool_size = {20 if mode == 'session' else 2}\n" + "\n".join(more)
        )

    def launch(self) -> None:
        """Start it; it listens some milliseconds later."""
        assert PROGRAM is not None
        # It refuses to run as root.
        account = "nobody" if os.geteuid() == 0 else None
        if account:
            shutil.chown(self._folder, account)
        configuration, log = self._folder / "pgbouncer.ini", self._folder / "log"
        self._process = spawn(PROGRAM, configuration, log=log, user=account)

    def is_listening(self) -> bool:
        """Whether it takes connections."""
        return listens(self._port)

    def reload(self) -> None:
        """Have it read the configuration again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Kill it, with the connections that it has."""
        if self._process is not None:
            # Which signals make it wait for its clients depends on its release.
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def running_pgbouncer(dsn: str, mode: str, *more: str) -> Iterator[PgBouncer]:
    """Run a PgBouncer before the database of *dsn* until the block ends."""
    with TemporaryDirectory() as name:
        bouncer = PgBouncer(Path(name), dsn, mode, *more)
        bouncer.launch()
        try:
            block_until(bouncer.is_listening)
            yield bouncer
        finally:
            bouncer.stop()
