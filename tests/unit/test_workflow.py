"""What an abort ends beside the task itself, and in which order."""

from typing import Any

import pytest
from celery import Celery, Signature, chain, chord, group, states
from celery.app.task import Context

from aioabort import TaskAborted
from aioabort.worker.finish import AbortHonoured, finish_aborted
from aioabort.worker.run import Run
from tests.unit.test_run import Listener

ERROR = TaskAborted("why", "ann", "a")


class Backend:
    """Notes what it is told, and can be lost in the middle of it."""

    def __init__(self, lost_after: int = 1_000) -> None:
        self.stored: list[str] = []
        self.parts: list[str] = []
        self.own: list[tuple[bool, bool]] = []
        self._lost_after = lost_after

    def store_result(self, task_id: str, error: object, state: str, **_: Any) -> None:
        if len(self.stored) == self._lost_after:
            raise SystemExit
        assert (error, state) == (ERROR, states.REVOKED)
        self.stored.append(task_id)

    def on_chord_part_return(self, request: Context, *_: object) -> None:
        self.parts.append(str(request.id))

    def mark_as_failure(
        self,
        task_id: str,
        _: object,
        request: Context,
        *,
        store_result: bool,
        call_errbacks: bool,
        **__: Any,
    ) -> None:
        assert (task_id, request.chain) == ("a", None)
        self.own.append((store_result, call_errbacks))


class Task:
    """Stands for Celery's, whose ends are told to a backend."""

    ignore_result = store_errors_even_if_ignored = False

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def after_return(self, *_: object) -> None:
        """Do nothing."""


@pytest.fixture
def part() -> Any:
    """Makes a part of a workflow; its id is its name."""
    app = Celery("tests", broker="memory://", set_as_current=False)

    @app.task(name="part", shared=False)
    def task() -> None: ...

    return lambda name: task.si().set(task_id=name)


def end(backend: Backend, *rest: Signature, state: str | None = None) -> None:
    """End a task whose chain goes on with *rest*, which has ids."""
    request = Context(id="a", chain=[part for part in reversed(rest) if part.freeze()])
    run = Run(Context(id="a", hostname="w@h"), Listener())
    run.state = state
    task: Any = Task(backend)
    finish_aborted(task, request, ERROR, run)


def test_every_task_of_the_rest_of_a_chain_ends(part: Any) -> None:
    """However deep it is in groups, chains and chords."""
    backend = Backend()
    rest = chord(
        [chain(part("b"), group(part("c"), part("d"))), part("e")],
        group(part("f"), chord([part("g"), part("h")], part("i"))),
    )
    with pytest.raises(AbortHonoured):
        end(backend, rest)
    assert sorted(backend.stored) == list("bcdefghi")
    # No chord is told of a part of a header that never began.
    assert backend.parts == []


def test_task_that_nobody_can_wait_for(part: Any) -> None:
    """A part without an id is no obstacle."""
    backend = Backend()
    request = Context(id="a", chain=[part(None)])
    run = Run(Context(id="a", hostname="w@h"), Listener())
    task: Any = Task(backend)
    with pytest.raises(AbortHonoured):
        finish_aborted(task, request, ERROR, run)
    assert backend.stored == []


def test_process_that_dies_while_it_ends_a_chain(part: Any) -> None:
    """The redelivery does again what may be missing: the task's own end comes last.

    run: ends b, is killed | redelivery, state STARTED: ends b, c and itself
    """
    lost, backend = Backend(lost_after=1), Backend()
    with pytest.raises(SystemExit):
        end(lost, part("b"), part("c"))
    assert lost.own == []
    with pytest.raises(AbortHonoured):
        end(backend, part("b"), part("c"), state="STARTED")
    assert sorted(backend.stored) == ["b", "c"]
    assert backend.own == [(True, True)]


def test_process_that_dies_before_it_tells_the_chord(part: Any) -> None:
    """The redelivery of a task that is REVOKED tells its chord, and stores nothing.

    run: stores REVOKED, is killed | redelivery, state REVOKED: returns its part
    """
    backend = Backend()
    with pytest.raises(AbortHonoured):
        end(backend, part("b"), state="REVOKED")
    assert backend.own == [(False, False)]


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE"])
def test_redelivery_of_a_finished_task(part: Any, state: str) -> None:
    """What came of it, and of what followed, is left alone."""
    backend = Backend()
    with pytest.raises(AbortHonoured):
        end(backend, part("b"), state=state)
    assert (backend.stored, backend.own) == ([], [])
