"""A reader, who follows a page step by step.

A block of Python that begins with ``# name.py`` is a file of a project;
``# name.py, continued`` is appended to that file, which may be one that a command made.
The owner of the database runs blocks of SQL. A ``console`` block has commands and their
output, where ``…`` stands for any text. ``celery … worker`` runs until ``^C``, in a
terminal of its own.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import psycopg

from tests.support.brokers import FOLDER_TRANSPORT, folder_broker
from tests.support.programs import block_until_started
from tests.support.waiting import BOUND

from .pages import Block, blocks_of

#: Options of every worker, beside those on the page.
QUIET = "--without-gossip --without-mingle --without-heartbeat"

#: Replaces the first line of a file, and records that the file was used.
NOTE_USE = "__import__('pathlib').Path(__file__ + '.used').touch()"


class Reader:
    """Follows a page in a folder of its own."""

    def __init__(self, page: str, folder: Path, dsn: str, celery_url: str) -> None:
        self.folder = folder
        self.dsn = dsn
        self.files: dict[str, str] = {}
        #: Texts of the page, with those that replace them everywhere.
        self.replaced: dict[str, str] = {}
        #: Appended to proj.py: the addresses of this test.
        self.settings: dict[str, object] = _settings(folder, celery_url)
        self.variables: dict[str, str] = {}
        self._page = page
        self._todo = blocks_of(page)
        self._worker: subprocess.Popen[bytes] | None = None
        self._status = 0

    def follow(self, *, until: str = "") -> None:
        """Do all blocks, or those before the first one that contains *until*."""
        while self._todo and not (until and until in self._todo[0].text):
            self.do(self._todo.pop(0))
        assert self._todo or not until, f"{self._page} has no {until!r}"

    def next(self) -> Block:
        """Return the next block, which the caller does in its own way."""
        return self._todo.pop(0)

    def do(self, block: Block) -> None:
        """Do one block: write its file, or run its commands or statements."""
        where = f"{self._page}:{block.line}"
        text = block.text
        for written, real in self.replaced.items():
            text = text.replace(written, real)
        if block.language == "console":
            self._type(where, text)
        elif block.language == "sql":
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                connection.execute(text.encode())
        else:
            assert block.file, f"{where}: which file is this?"
            self._write(block.file, text, is_continued=block.is_continued)

    def give(self, name: str, text: str) -> None:
        """Write a file that the page does not show."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(self._program(name, text))

    def run(self, command: str) -> str:
        """Run a command in the folder; return what it prints, errors included."""
        done = subprocess.run(
            ["bash", "-c", f"(exit {self._status})\n{command}"],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=4 * BOUND,
            check=False,
        )
        self._status = done.returncode
        return done.stdout

    def start_worker(self, command: str = "celery -A proj worker") -> None:
        """Start a worker, and return when it is ready."""
        self.stop_worker()
        log = self.folder / "worker.log"
        with log.open("wb") as output:
            self._worker = subprocess.Popen(
                ["bash", "-c", f"exec {command} {QUIET} --loglevel=INFO"],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        block_until_started(self._worker, lambda: " ready." in log.read_text(), log)

    def stop_worker(self) -> str:
        """Stop the worker, if there is one; return its log."""
        if self._worker is None:
            return ""
        worker, self._worker = self._worker, None
        worker.send_signal(signal.SIGINT)
        try:
            worker.wait(BOUND)
        finally:
            worker.kill()
            worker.wait()
        return (self.folder / "worker.log").read_text()

    def unused(self) -> list[str]:
        """Return the examples that were not run."""
        return [
            *(f"{self._page}:{block.line}" for block in self._todo),
            *(
                f"{self._page}: {name}"
                for name in self.files
                if name.endswith(".py") and not (self.folder / f"{name}.used").exists()
            ),
        ]

    def _write(self, name: str, text: str, *, is_continued: bool) -> None:
        begun = self.files.get(name)
        if is_continued and begun is not None:
            text = begun + text
        elif name.endswith(".py"):
            # It replaces the comment, so that line numbers stay right.
            text = re.sub("^# .*", NOTE_USE, text, count=1)
            if is_continued:
                # A command of the page has made the file.
                text = (self.folder / name).read_text() + text
        self.files[name] = text
        self.give(name, text)

    def _program(self, name: str, text: str) -> str:
        if name != "proj.py":
            return text
        update = f"app.conf.update({self.settings!r})"
        return f"{text}\nimport folder_broker\n{update}\n"

    def _type(self, where: str, session: str) -> None:
        """Run the commands of a session, and compare what they print."""
        for step in re.split(r"^(?=\$ |\^C)", session, flags=re.MULTILINE):
            command, _, wanted = step.partition("\n")
            if command == "^C":
                printed = self.stop_worker()
                assert matches(f"…{wanted.strip()}…", printed), f"{where}:\n{printed}"
            elif " worker" in command:
                self.start_worker(command.removeprefix("$ "))
            elif assignment := re.match(r"\$ (\w+)=\$\((.*)\)$", command):
                self.variables[assignment[1]] = self.run(assignment[2]).strip()
            elif command.startswith("$ "):
                printed = self.run(command.removeprefix("$ "))
                assert matches(wanted, printed), f"{where}: {command}\n{printed}"
            else:
                assert not step.strip(), f"{where}: {step!r} is no command"

    def _environment(self) -> Mapping[str, str]:
        programs = Path(sys.executable).parent
        # A run against a source tree puts that tree into PYTHONPATH.
        paths = [str(FOLDER_TRANSPORT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            # The width that pytest assumes for a terminal.
            "COLUMNS": "80",
        }
        # nox sets it to test the installed package; a reader does not.
        environment.pop("PYTHONSAFEPATH", None)
        return environment | self.variables


def matches(wanted: str, printed: str) -> bool:
    """Whether *printed* matches the page, where ``…`` stands for any text."""
    wanted, printed = (re.sub("  +", "  ", text.strip()) for text in (wanted, printed))
    pattern = ".*?".join(map(re.escape, wanted.split("…")))
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


def _settings(folder: Path, celery_url: str) -> dict[str, object]:
    return {
        **folder_broker(folder / "broker"),
        "result_backend": celery_url,
        "worker_enable_remote_control": False,
    }
