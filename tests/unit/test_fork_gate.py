"""Forks wait for a step of an event loop, and never break it."""

import threading

import anyio.lowlevel
import pytest

from aioabort.concurrency import fork_gate
from aioabort.concurrency.fork_gate import _ForkGate, run_between_forks


def test_the_result_and_the_error_are_the_coroutines() -> None:
    """The coroutine runs in the calling thread."""

    async def ident() -> int:
        await anyio.lowlevel.checkpoint()
        return threading.get_ident()

    async def fail() -> None:
        raise ConnectionError

    assert run_between_forks(ident()) == threading.get_ident()
    with pytest.raises(ConnectionError):
        run_between_forks(fail())


def test_hooks_that_are_registered_twice_do_no_harm() -> None:
    """Closes: A and B: run_between_forks() for the first time, each registers hooks | a
    fork waits for the lock that its own first hook holds | the loop never gets it back.
    """
    gate = _ForkGate()
    gate.close()
    gate.close()
    assert gate.lock.locked()
    gate.open()
    gate.open()
    assert not gate.lock.locked()


def test_a_fork_that_gave_up_waiting_releases_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Closes: A: holds the gate to fork | B: forks after it has waited for too long | A:
    believes that it holds nothing | the loop waits for the gate for ever.
    """
    monkeypatch.setattr(fork_gate, "LONGEST_WAIT", 0.01)
    gate = _ForkGate()

    def fork() -> None:
        gate.close()
        gate.open()

    gate.close()
    other = threading.Thread(target=fork)
    other.start()
    other.join(5)
    assert gate.lock.locked()
    gate.open()
    assert not gate.lock.locked()


def test_a_child_starts_with_an_open_gate() -> None:
    """Closes: a thread of the parent is in a step | fork | the child's loop waits."""
    gate = _ForkGate()
    gate.close()
    gate.replace()
    assert not gate.lock.locked()
    gate.close()
    assert gate.lock.locked()
