"""Somebody who reads a page and does what it says, step by step.

A block of Python that begins with ``# name.py`` is a file of a project, and
``# name.py, continued`` goes on with it. A block of SQL is run by the owner of the
database. A ``console`` block is commands and what they print, where ``…`` stands for
what differs from run to run. ``celery … worker`` runs until ``^C``.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psycopg

from .pages import ROOT, Block, blocks_of

#: Seconds that one command may take on a busy machine.
BOUND = 60.0

#: Seconds that a worker may take to stop when no task runs.
STOP_BOUND = 20.0

PAUSE = 0.01

#: Where the broker is that is a folder.
PROJECT = ROOT / "tests/acceptance/project"

#: What a worker is started with besides what the page says.
QUIET = "--hostname=reader@%h --without-gossip --without-mingle --without-heartbeat"

#: Written for the first line, so that it is known which files were used.
NOTE_USE = "__import__('pathlib').Path(__file__ + '.used').touch()"


class Reader:
    """Follows a page in a folder of its own."""

    def __init__(self, page: str, folder: Path, dsn: str, celery_url: str) -> None:
        self.folder = folder
        self.dsn = dsn
        self.files: dict[str, str] = {}
        #: Put in the place of what the page says, everywhere.
        self.replaced: dict[str, str] = {}
        #: Written at the end of proj.py: where things are on this machine.
        self.settings: dict[str, object] = _settings(folder, celery_url)
        self.variables: dict[str, str] = {}
        self._page = page
        self._todo = blocks_of(page)
        self._worker: subprocess.Popen[bytes] | None = None
        self._status = 0

    def follow(self, *, until: str = "") -> None:
        """Do what the page says, up to the first block that has *until* in it."""
        while self._todo and not (until and until in self._todo[0].text):
            self.do(self._todo.pop(0))
        assert self._todo or not until, f"{self._page} has no {until!r}"

    def do(self, block: Block) -> None:
        """Do what one block says."""
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
        """Have a file that the page does not show."""
        (self.folder / name).write_text(self._program(name, text))

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
            timeout=BOUND,
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
        deadline = time.monotonic() + BOUND
        while " ready." not in (said := log.read_text()):
            assert self._worker.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(PAUSE)

    def stop_worker(self) -> str:
        """Stop the worker, if there is one; return its log."""
        if self._worker is None:
            return ""
        worker, self._worker = self._worker, None
        worker.send_signal(signal.SIGINT)
        try:
            worker.wait(STOP_BOUND)
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
        if is_continued:
            self.files[name] += text
        else:
            self.files[name] = text
        program = self.files[name]
        if name.endswith(".py"):
            # In the place of the comment, so that the numbers of lines are right.
            program = re.sub("^# .*", NOTE_USE, program, count=1)
        self.give(name, program)

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
        environment = os.environ | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT),
            # As wide as pytest thinks that a terminal is.
            "COLUMNS": "80",
        }
        # Set where the tests of an installed package run; readers do not set it.
        environment.pop("PYTHONSAFEPATH", None)
        return environment | self.variables


def matches(wanted: str, printed: str) -> bool:
    """Whether *printed* is what the page shows, where ``…`` stands for anything."""
    wanted, printed = (re.sub("  +", "  ", text.strip()) for text in (wanted, printed))
    pattern = ".*?".join(map(re.escape, wanted.split("…")))
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


def _settings(folder: Path, celery_url: str) -> dict[str, object]:
    queue, processed = folder / "broker/queue", folder / "broker/processed"
    queue.mkdir(parents=True)
    processed.mkdir()
    return {
        "broker_url": "folder://",
        "broker_transport_options": {
            "control_folder": str(folder / "broker/control"),
            "data_folder_in": str(queue),
            "data_folder_out": str(queue),
            "polling_interval": PAUSE,
            "processed_folder": str(processed),
            "store_processed": True,
        },
        "result_backend": celery_url,
        "worker_enable_remote_control": False,
    }
