"""What the main process takes for the remains of a process that was killed."""

import signal
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from aioabort.worker import remains

PID = 4_194_305


class Down(SimpleNamespace):
    """A process that a signal has ended."""

    pid = PID
    exitcode = -signal.SIGTERM


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the tasks whose end is recorded."""
    ids: list[str] = []
    monkeypatch.setattr(remains, "record_end", lambda end: ids.append(end.context.id))
    monkeypatch.setattr(remains, "_latest", defaultdict(dict))
    monkeypatch.setattr(remains, "_pool", SimpleNamespace(on_process_down=None))
    monkeypatch.setattr(remains.state, "active_requests", set())
    return ids


def test_tasks_that_had_ended(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is recorded once, and what still runs is not."""
    for task_id in ("ended", "active"):
        remains.remember(PID, SimpleNamespace(), task_id)
    active = [SimpleNamespace(id="active")]
    monkeypatch.setattr(remains.state, "active_requests", active)

    for _ in range(2):
        remains._pool.on_process_down(Down())

    assert recorded == ["ended"]


def test_task_that_is_revoked(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """How it ends is recorded by who revokes it, at whatever moment that begins.

    its process is down | revoked: forgotten, and then active no more | who is active?
    | whose remains are these?
    """
    remains.remember(PID, SimpleNamespace(), "revoked")

    class Active:
        def __iter__(self) -> Iterator[Any]:
            remains.forget(PID, "revoked")
            return iter(())

    monkeypatch.setattr(remains.state, "active_requests", Active())
    remains._pool.on_process_down(Down())

    assert recorded == []


def test_memory_is_bounded(recorded: list[str]) -> None:
    """The oldest tasks of a process are forgotten first."""
    for number in range(remains.MOST + 1):
        remains.remember(PID, SimpleNamespace(), str(number))

    remains._pool.on_process_down(Down())

    assert recorded == [str(number) for number in range(1, remains.MOST + 1)]
