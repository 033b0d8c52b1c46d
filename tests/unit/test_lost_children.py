"""Outcomes that the main process records for a child that was killed."""

import signal
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from aioabort.worker.main_process import lost_children

PID = 4_194_305


class Down(SimpleNamespace):
    """A process that a signal has ended."""

    pid = PID
    exitcode = -signal.SIGTERM


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the tasks whose outcomes are recorded."""
    ids: list[str] = []
    monkeypatch.setattr(
        lost_children, "record_outcome", lambda ended: ids.append(ended.context.id)
    )
    monkeypatch.setattr(lost_children, "_tasks", defaultdict(dict))
    monkeypatch.setattr(lost_children, "_pool", SimpleNamespace(on_process_down=None))
    monkeypatch.setattr(lost_children.state, "active_requests", set())
    return ids


def test_tasks_that_had_ended(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is recorded once. A task that is still active is not recorded."""
    for task_id in ("ended", "active"):
        lost_children.note_task(PID, SimpleNamespace(), task_id)
    active = [SimpleNamespace(id="active")]
    monkeypatch.setattr(lost_children.state, "active_requests", active)

    for _ in range(2):
        lost_children._pool.on_process_down(Down())

    assert recorded == ["ended"]


def test_task_that_is_revoked(
    recorded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The revoke records its outcome, even if it begins after the child's end.

    the child is down | revoked: dropped, then active no more | which tasks are active?
    | which tasks had the child?
    """
    lost_children.note_task(PID, SimpleNamespace(), "revoked")

    class Active:
        def __iter__(self) -> Iterator[Any]:
            lost_children.drop_task(PID, "revoked")
            return iter(())

    monkeypatch.setattr(lost_children.state, "active_requests", Active())
    lost_children._pool.on_process_down(Down())

    assert recorded == []


def test_memory_is_bounded(recorded: list[str]) -> None:
    """The oldest tasks of a process are forgotten first."""
    for number in range(lost_children.MOST_PER_CHILD + 1):
        lost_children.note_task(PID, SimpleNamespace(), str(number))

    lost_children._pool.on_process_down(Down())

    assert recorded == [
        str(number) for number in range(1, lost_children.MOST_PER_CHILD + 1)
    ]
