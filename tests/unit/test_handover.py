"""What a child hands to its main process before it exits."""

import os
from collections.abc import Callable

import pytest

from aioabort.worker.handover import Handover, UnrecordedEnd

SEEN = UnrecordedEnd(
    task_id="seen",
    outcome="returned",
    ended_at=2.0,
    requested_at="2026-01-01T00:00:00+00:00",
    seen_at=1.0,
    seen_by="w@h pid 1",
)
UNKNOWN = UnrecordedEnd(task_id="unknown", outcome="too_late", ended_at=2.0)


def in_child(act: Callable[[], object]) -> int:
    """Return 0 if *act* is true in a forked process, 1 otherwise."""
    child = os.fork()
    if not child:
        os._exit(0 if act() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def handover() -> Handover:
    """A pipe that this process has opened."""
    handover = Handover()
    handover.open()
    return handover


def test_what_children_write_is_read_once(handover: Handover) -> None:
    """Nothing is lost, and nothing comes twice."""
    assert in_child(lambda: handover.write([SEEN]) == []) == 0
    assert in_child(lambda: handover.write([UNKNOWN]) == []) == 0
    assert handover.read() == [SEEN, UNKNOWN]
    assert handover.read() == []


def test_full_pipe_blocks_nobody(handover: Handover) -> None:
    """A child gets back what the pipe has no room for, and the rest is whole."""
    many = [SEEN] * 1_000
    assert in_child(lambda: 0 < len(handover.write(many)) < len(many)) == 0
    assert set(handover.read()) == {SEEN}


def test_id_that_is_too_long(handover: Handover) -> None:
    """A line that the kernel could cut in two is not written."""
    long = UnrecordedEnd(task_id="x" * 5_000, outcome="too_late", ended_at=2.0)
    assert in_child(lambda: handover.write([long, SEEN]) == [long]) == 0
    assert handover.read() == [SEEN]


def test_no_main_process() -> None:
    """Without a pipe, and in the process that would read it, nothing is handed over."""
    alone = Handover()
    assert alone.write([SEEN]) == [SEEN]
    assert alone.read() == []
    alone.open()
    assert alone.write([SEEN]) == [SEEN]
