import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

DEMO = [sys.executable, "-m", "aioabort.demo"]

#: Enough files for progress to be reported more than once in the first half.
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
    """The demo aborts runs at each moment, says that none was lost, and exits with 0."""
    ran = demo(
        "--path", tree, "--runs", "10", "--seconds", "1", "--pool", pool, cwd=tmp_path
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^ aborts asked +\d+ +10 *$", ran.stdout, re.MULTILINE)
    assert re.search(r"^ lost +\d+ +0 *$", ran.stdout, re.MULTILINE)
    assert ran.stderr == ""


def test_output_is_plain_without_a_terminal(tree: Path, tmp_path: Path) -> None:
    """A log gets lines, without what moves the cursor or colours the text."""
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
        (("--broker", "redis://127.0.0.1:1/"), "--broker: Error 111 connecting"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    """A wrong argument ends the demo with status 2 and no traceback."""
    ran = demo(*arguments, cwd=tmp_path)

    assert ran.returncode == 2
    assert ran.stderr.startswith(f"aioabort.demo: {message}")
    assert ran.stderr.count("\n") == 1
    assert "secret" not in ran.stderr


def test_help_tells_the_options(tmp_path: Path) -> None:
    """The help names what can be chosen, and the meaning of the exit status."""
    ran = demo("--help", cwd=tmp_path)

    assert ran.returncode == 0
    for word in ("--path", "--pool", "--no-notify", "--broker", "Exit status"):
        assert word in ran.stdout


def test_interrupted_demo_leaves_nothing(
    tree: Path, tmp_path: Path, temporary: Path
) -> None:
    """Ctrl-C ends the worker and the server, and removes what they wrote."""
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
