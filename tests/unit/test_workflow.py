"""An abort also ends what was to run after the task, and in which order."""

from typing import Any

import pytest
from celery import Celery, Signature, chain, chord, group, states
from celery.app.task import Context

from aioabort import TaskAborted
from aioabort.worker.execution.ending import end_as_revoked
from aioabort.worker.run import Run
from aioabort.worker.workflow import AbortHonoured, ids_of_followers
from tests.unit.test_run import RecordingSupervisor

ERROR = TaskAborted("why", "ann", "a")


class Backend:
    """Notes what is stored; the process dies after *lost_after* states.

    *states* are those that are stored already, by task id. The end of the workflow
    cannot be stored *failures* times.
    """

    def __init__(
        self,
        lost_after: int = 1_000,
        states: dict[str, str] | None = None,
        failures: int = 0,
    ) -> None:
        self.states = states or {}
        self.stored: list[str] = []
        self.parts: list[str] = []
        #: How often the end of the workflow was stored, or tried.
        self.ends = 0
        self.errbacks: list[str] = []
        self.failures = failures
        self._lost_after = lost_after

    def store_result(self, task_id: str, error: object, state: str, **_: Any) -> None:
        if len(self.stored) == self._lost_after:
            raise SystemExit
        assert (error, state) == (ERROR, states.REVOKED)
        self.stored.append(task_id)

    def get_task_meta(self, task_id: str, cache: bool) -> dict[str, str]:
        assert not cache
        return {"status": self.states.get(task_id, "PENDING")}

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
        assert (store_result, call_errbacks) == (False, False)
        self.ends += 1
        if self.failures:
            self.failures -= 1
            raise ConnectionError

    def _call_task_errbacks(self, request: Context, error: object, _: None) -> None:
        assert error == ERROR
        [errback] = request.errbacks
        self.errbacks.append(errback)
        if errback == "broken":
            raise LookupError


class Task:
    """Stands for Celery's task, which stores its final state in a backend."""

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


def end(backend: Backend, *rest: Signature, state: str | None = None) -> Run:
    """End a task whose chain goes on with *rest*, which has ids; return its run."""
    later = [part for part in reversed(rest) if part.freeze()]
    request = Context(id="a", chain=later, errbacks=["broken", "other"])
    run = Run(Context(id="a", hostname="w@h"), RecordingSupervisor())
    run.stored_state = state
    task: Any = Task(backend)
    with pytest.raises(AbortHonoured):
        end_as_revoked(task, request, ERROR, run)
    run.mark_ended(states.IGNORED)
    return run


def test_every_task_of_the_rest_of_a_chain_ends(part: Any) -> None:
    """However deep it is in groups, chains and chords."""
    backend = Backend()
    rest = chord(
        [chain(part("b"), group(part("c"), part("d"))), part("e")],
        group(part("f"), chord([part("g"), part("h")], part("i"))),
    )
    end(backend, rest)
    assert sorted(backend.stored) == list("abcdefghi")
    # No part is returned to a chord whose header never began.
    assert backend.parts == []


def test_task_without_an_id(part: Any) -> None:
    """It has no waiter, and does no harm."""
    backend = Backend()
    request = Context(id="a", chain=[part(None)])
    run = Run(Context(id="a", hostname="w@h"), RecordingSupervisor())
    task: Any = Task(backend)
    with pytest.raises(AbortHonoured):
        end_as_revoked(task, request, ERROR, run)
    assert backend.stored == ["a"]


@pytest.mark.parametrize(("state", "again"), [("STARTED", "abc"), ("REVOKED", "bc")])
def test_process_that_dies_while_it_ends_a_chain(
    part: Any, state: str, again: str
) -> None:
    """The redelivery does again what may be missing.

    run: ends itself and c, is killed | redelivery: ends c and b, and itself if Celery's
    STARTED has replaced its end
    """
    lost, backend = Backend(lost_after=2), Backend()
    with pytest.raises(SystemExit):
        end(lost, part("b"), part("c"))
    assert (lost.stored, lost.ends, lost.errbacks) == (["a", "c"], 0, [])
    end(backend, part("b"), part("c"), state=state)
    assert sorted(backend.stored) == list(again)
    assert bool(backend.errbacks) == (state == "STARTED")


def test_process_that_dies_before_it_returns_its_part(part: Any) -> None:
    """The redelivery of a REVOKED task returns its part of the chord, and stores nothing.

    run: stores REVOKED, is killed | redelivery, state REVOKED: returns its part
    """
    backend = Backend()
    end(backend, part("b"), state="REVOKED")
    assert "a" not in backend.stored
    assert (backend.ends, backend.errbacks) == (1, [])


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE"])
def test_another_run_has_a_result(part: Any, state: str) -> None:
    """Its result stays, and so do the results of what followed.

    this run: polls, STARTED | the other run: *state*, publishes b | this run: aborted
    """
    backend = Backend(states={"a": state})
    run = end(backend, part("b"), state="STARTED")
    assert (backend.stored, backend.ends, backend.errbacks) == ([], 0, [])
    assert run.outcome == "too_late"


def test_follower_that_has_a_result(part: Any) -> None:
    """It was published by another run of the task, and may have returned.

    this run: REVOKED | the other run: SUCCESS, publishes b | b: SUCCESS | this run: ends c
    """
    backend = Backend(states={"b": "SUCCESS"})
    end(backend, part("b"), part("c"))
    assert sorted(backend.stored) == ["a", "c"]


def test_who_does_not_run(part: Any) -> None:
    """Later tasks and callbacks, and the bodies of the chords that they are in."""
    link = part("link").set(chord=part("body"))
    context = Context(chain=[link], callbacks=[part("callback")])

    assert sorted(ids_of_followers(context)) == ["body", "callback", "link"]
    assert ids_of_followers(Context(chord=part("body"))) == ["body"]
    assert ids_of_followers(Context()) == []


def test_errbacks_are_called_once(part: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Only the storing is repeated, and an errback's own error ends nothing.

    storing fails | stored | the first errback fails: logged | the second is called
    """
    backend = Backend(failures=2)
    end(backend, part("b"))
    assert backend.ends == 3
    assert backend.errbacks == ["broken", "other"]
    [record] = [each for each in caplog.records if each.levelname == "ERROR"]
    assert record.getMessage() == "Task a: an errback failed"
