"""Threads take turns sooner for the time of a look, and only then."""

import os
import sys
from collections.abc import Iterator

import pytest

from aioabort.switching import SOON, switching_soon

USUAL = 0.004


@pytest.fixture(autouse=True)
def usual_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(USUAL)
    yield
    sys.setswitchinterval(before)


def test_it_ends_with_the_last_block() -> None:
    """Looks of two agents overlap; what was usual comes back after both."""
    first, second = switching_soon(), switching_soon()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert sys.getswitchinterval() == pytest.approx(SOON)
    second.__exit__(None, None, None)
    assert sys.getswitchinterval() == pytest.approx(USUAL)


def test_what_the_program_sets_meanwhile_stays() -> None:
    """An interval that somebody else set within the block is not undone."""
    with switching_soon():
        sys.setswitchinterval(0.1)
    assert sys.getswitchinterval() == pytest.approx(0.1)


def test_a_shorter_interval_is_kept() -> None:
    """A program that switches even sooner goes on to do so."""
    sys.setswitchinterval(SOON / 5)
    with switching_soon():
        assert sys.getswitchinterval() == pytest.approx(SOON / 5)
    assert sys.getswitchinterval() == pytest.approx(SOON / 5)


def test_a_fork_within_a_block_is_not_in_a_hurry() -> None:
    """Closes: the agent's thread looks | another thread forks | the child has no agent."""
    with switching_soon():
        pid = os.fork()
        if not pid:
            usual = abs(sys.getswitchinterval() - USUAL) < SOON / 10
            os._exit(0 if usual else 1)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
