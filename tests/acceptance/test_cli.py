"""The commands beside a real worker, as its operator types them."""

import json
import os
import sys
from collections.abc import Callable
from subprocess import PIPE, Popen

import pytest
from anyio import to_thread

from .conftest import follow_log
from .harness import PROJECT, Stage, Worker


@pytest.fixture
def worker(request: pytest.FixtureRequest, workers: Callable[[str], Worker]) -> Worker:
    """One worker: for the commands, they are all the same."""
    worker = workers("prefork-notified")
    follow_log(request, worker)
    return worker


class Terminal:
    """Where the commands of one worker's project are typed."""

    def __init__(self, stage: Stage) -> None:
        self._variables = stage.worker.variables

    async def run(self, *arguments: str) -> tuple[int, str]:
        """Run a command; return its exit code and what it printed."""
        program = self.start(*arguments)
        output = (await to_thread.run_sync(program.communicate))[0]
        return program.returncode, output

    def start(self, *arguments: str) -> "Popen[str]":
        """Start a command."""
        return Popen(
            [sys.executable, "-m", "celery", "-A", "proj", "aioabort", *arguments],
            cwd=PROJECT,
            env=os.environ | self._variables,
            stdout=PIPE,
            text=True,
        )


async def test_watch_of_a_task(stage: Stage) -> None:
    """It follows the task from state to state, and ends with it."""
    result = await stage.start(stage.tasks.raising)
    program = Terminal(stage).start("watch", result.id, "--json")
    assert program.stdout is not None
    first = json.loads(await to_thread.run_sync(program.stdout.readline))
    await result.abort(reason="why")
    output = (await to_thread.run_sync(program.communicate))[0]

    assert program.returncode == 0
    assert (first["state"], first["request"]) == ("STARTED", None)
    last = json.loads(output.splitlines()[-1])
    assert (last["state"], last["is_finished"]) == ("REVOKED", True)
    assert last["request"]["reason"] == "why"


async def test_abort_that_waits_for_the_end(stage: Stage) -> None:
    """It ends when the tasks have, and tells how: one stops, one returns a value."""
    tasks = stage.tasks
    stopping = await stage.scene("stopping").start(tasks.raising)
    returning = await stage.scene("returning").start(tasks.returning)
    ids = (stopping.id, returning.id)
    code, output = await Terminal(stage).run("abort", *ids, "--wait", "60", "--json")

    assert code == 0
    outcomes = [receipt["outcome"] for receipt in json.loads(output)]
    assert outcomes == ["aborted", "returned"]
    assert (await stopping.snapshot()).state == "REVOKED"
    assert (await returning.snapshot()).state == "SUCCESS"
