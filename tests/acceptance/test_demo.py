import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from tests.support.waiting import BOUND, block_until

DEMO = [sys.executable, "-m", "aioabort.demo"]

#: Enough files for several progress updates in the first half.
FILES = 60


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder that the account of the throw-away server may enter, unlike tmp_path."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    for number in range(FILES):
        (folder / f"{number}.txt").write_text(f"file {number}")
    return folder


def demo(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_demo_loses_no_abort(pool: str, tree: Path, tmp_path: Path) -> None:
    """The demo aborts runs at each moment, reports no lost abort and exits with 0."""
    ran = demo(
        "--path", tree, "--runs", "10", "--seconds", "1", "--pool", pool, cwd=tmp_path
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^ aborts requested +\d+ +10 *$", ran.stdout, re.MULTILINE)
    assert re.search(r"^ lost +\d+ +0 *$", ran.stdout, re.MULTILINE)
    assert ran.stderr == ""


def test_output_is_plain_without_a_terminal(tree: Path, tmp_path: Path) -> None:
    """A log gets lines, without escape sequences."""
    ran = demo("--path", tree, "--runs", "5", "--only", "aioabort", cwd=tmp_path)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "aioabort: 5 of 5 runs, 5 honoured, 0 lost\n" in ran.stdout
    assert "\x1b" not in ran.stdout
    assert "\r" not in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--path", "missing"), "--path: missing is not a directory"),
        (("--path", "."), "--path: . has no files that can be read"),
        (("--dsn", "mysql://localhost/x"), "--dsn: not a PostgreSQL URL"),
        (("--dsn", "postgresql://me:secret@127.0.0.1:1/x"), "--dsn: connection failed"),
        (("--broker", "pigeon://"), "--broker: 'No such transport: pigeon'"),
        (("--port", "{used}"), "--port: {used} on 127.0.0.1: Address already in use"),
        (("--broker", "redis://127.0.0.1:1/"), "--broker: Error 111 connecting"),
    ],
)
def test_an_unusable_option_is_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    """A wrong argument ends the demo with status 2 and no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        used = server.getsockname()[1]
        ran = demo(*(each.format(used=used) for each in arguments), cwd=tmp_path)

    assert ran.returncode == 2
    assert ran.stderr.startswith(f"aioabort.demo: {message.format(used=used)}")
    assert ran.stderr.count("\n") == 1
    assert "secret" not in ran.stderr


def test_help_lists_the_options(tmp_path: Path) -> None:
    """The help lists the options and explains the exit status."""
    ran = demo("--help", cwd=tmp_path)

    assert ran.returncode == 0
    for word in ("--path", "--pool", "--no-notify", "--compare", "Exit status"):
        assert word in ran.stdout


def test_interrupted_demo_leaves_nothing(
    tree: Path, tmp_path: Path, temporary: Path
) -> None:
    """Ctrl-C stops the worker and the server, and removes their files."""
    command = [*DEMO, "--path", str(tree), "--only", "aioabort", "--runs", "1000"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        for line in running.stdout:
            if "starting a worker" in line:
                break
        running.send_signal(signal.SIGINT)
        errors = running.stderr.read()

    assert errors == "Interrupted.\n"
    assert running.returncode == 130
    assert list(temporary.iterdir()) == []


def test_page_opens_on_a_terminal(tree: Path, tmp_path: Path, temporary: Path) -> None:
    """On a terminal the page is served and opened, until Ctrl-C."""
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho $1 > {opened}.new; mv {opened}.new {opened}\n")
    browser.chmod(0o755)
    environment = {
        **os.environ,
        "BROWSER": f"{browser} %s",
        "DISPLAY": ":99",
        "TMPDIR": str(temporary),
    }
    environment.pop("CI", None)
    ours, terminal = pty.openpty()
    with subprocess.Popen(
        [*DEMO, "--path", str(tree)],
        cwd=tmp_path,
        env=environment,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    ) as running:
        os.close(terminal)
        try:
            # A server and a worker start before it.
            block_until(opened.exists, 2 * BOUND)
            page = httpx.get(opened.read_text().strip())
        finally:
            running.send_signal(signal.SIGINT)
            output = read_all(ours)

    assert page.status_code == 200
    assert "<title>aioabort" in page.text
    assert running.returncode == 0
    assert "Stopped." in output.splitlines()[-1]
    assert list(temporary.iterdir()) == []


def read_all(terminal: int) -> str:
    """Return the output until the other end is closed."""
    output = b""
    # Linux raises OSError when it is closed.
    with suppress(OSError):
        while data := os.read(terminal, 65_536):
            output += data
    os.close(terminal)
    return output.decode()
