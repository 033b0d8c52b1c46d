"""Threads switch sooner during a query, and only then."""

import os
import sys
from collections.abc import Iterator

import pytest

from aioabort.concurrency.switch_interval import SHORT_INTERVAL, short_switch_interval

USUAL = 0.004


@pytest.fixture(autouse=True)
def usual_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(USUAL)
    yield
    sys.setswitchinterval(before)


def test_it_ends_with_the_last_block() -> None:
    """Queries of two agents overlap; the usual interval comes back after both."""
    first, second = short_switch_interval(), short_switch_interval()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert sys.getswitchinterval() == pytest.approx(SHORT_INTERVAL)
    second.__exit__(None, None, None)
    assert sys.getswitchinterval() == pytest.approx(USUAL)


def test_what_the_program_sets_meanwhile_stays() -> None:
    """An interval that the program sets within the block stays."""
    with short_switch_interval():
        sys.setswitchinterval(0.1)
    assert sys.getswitchinterval() == pytest.approx(0.1)


def test_a_shorter_interval_is_kept() -> None:
    """A program that switches even sooner goes on to do so."""
    sys.setswitchinterval(SHORT_INTERVAL / 5)
    with short_switch_interval():
        assert sys.getswitchinterval() == pytest.approx(SHORT_INTERVAL / 5)
    assert sys.getswitchinterval() == pytest.approx(SHORT_INTERVAL / 5)


def test_a_fork_within_a_block_restores_the_interval() -> None:
    """Closes: the agent's thread queries | another thread forks | the child has no agent."""
    with short_switch_interval():
        pid = os.fork()
        if not pid:
            usual = abs(sys.getswitchinterval() - USUAL) < SHORT_INTERVAL / 10
            os._exit(0 if usual else 1)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("edge", ["beginning", "end"])
def test_a_fork_at_the_edge_of_a_block_restores_the_interval(
    edge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closes: agent: the interval is short, but no block counted | another thread forks."""
    statuses: list[int] = []
    set_interval = sys.setswitchinterval

    def fork_while_short(interval: float) -> None:
        monkeypatch.undo()
        if edge == "beginning":
            set_interval(interval)
        pid = os.fork()
        if not pid:
            usual = abs(sys.getswitchinterval() - USUAL) < SHORT_INTERVAL / 10
            os._exit(0 if usual else 1)
        statuses.append(os.waitpid(pid, 0)[1])
        if edge == "end":
            set_interval(interval)

    if edge == "beginning":
        monkeypatch.setattr(sys, "setswitchinterval", fork_while_short)
    with short_switch_interval():
        if edge == "end":
            monkeypatch.setattr(sys, "setswitchinterval", fork_while_short)
    assert statuses == [0]
    assert sys.getswitchinterval() == pytest.approx(USUAL)
