"""What a run makes of what PostgreSQL and Celery say."""

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from celery.app.task import Context

from aioabort import AbortRequest, TaskAborted
from aioabort.records import Outcome, TaskRow
from aioabort.worker.run import LONGEST_KILL, Run

PENDING = AbortRequest(
    task_id="id", requested_at=datetime(2026, 1, 1, tzinfo=UTC), reason="why"
)
SETTLED = replace(PENDING, outcome="aborted")
LATER = replace(SETTLED, requested_at=datetime(2026, 1, 2, tzinfo=UTC))


class Listener:
    """Stands for the agent: remembers what it hears."""

    def __init__(self) -> None:
        self.saw_runs: list[Run] = []

    def begin(self, run: Run) -> None:
        """Do nothing."""

    def wait_for_look(self, run: Run) -> None:
        """Do nothing."""

    def look_again(self, run: Run) -> None:
        """Do nothing."""

    def saw(self, run: Run) -> None:
        self.saw_runs.append(run)

    def end(self, run: Run) -> None:
        """Do nothing."""

    def end_now(self, run: Run) -> None:
        """Do nothing."""


def new_run(*, redelivered: bool = False) -> Run:
    delivery = {"redelivered": redelivered}
    return Run(Context(id="id", hostname="w@h", delivery_info=delivery), Listener())


def row(request: AbortRequest | None, state: str | None = "ABORTED") -> TaskRow:
    return TaskRow(task_id="id", state=state, request=request)


@pytest.mark.parametrize(
    ("looks", "redelivered", "aborted"),
    [
        ([None], False, False),
        ([None, PENDING], False, True),
        ([PENDING], False, True),
        ([PENDING], True, True),
        # A settled request is over for a fresh publication of the id, however often
        # it is looked at, but ended the very run that is delivered again.
        ([SETTLED, SETTLED], False, False),
        ([SETTLED], True, True),
        # A duplicate delivery elsewhere settled a request made since this run began.
        ([None, SETTLED], False, True),
        ([SETTLED, LATER], False, True),
        ([SETTLED, replace(LATER, outcome=None)], False, True),
    ],
)
def test_which_requests_abort_a_run(
    looks: list[AbortRequest | None], redelivered: bool, aborted: bool
) -> None:
    """A request is for the run that it was made for, and for its redeliveries."""
    run = new_run(redelivered=redelivered)
    for request in looks:
        run.observe(request and row(request))
    assert run.aborted is aborted


def test_the_first_look_is_over_even_if_it_found_nothing() -> None:
    """The task's start waits for a look, not for a row."""
    run = new_run()
    assert not run.looked.is_set()
    run.observe(None)
    assert run.looked.is_set()


def test_an_outage_at_the_start_does_not_change_whom_a_request_is_for() -> None:
    """A look that never happened is not the first look.

    start | outage: the start goes on | look: a request settled before the start
    """
    run = new_run()
    run.looked.set()
    run.observe(row(SETTLED))
    assert not run.aborted


def test_noticing_is_told_once() -> None:
    """However often a task checks, the request is recorded as seen once."""
    listener = Listener()
    run = Run(Context(id="id", hostname="w@h"), listener)
    assert not run.is_aborted()
    run.observe(row(PENDING))
    assert run.is_aborted()
    assert run.is_aborted()
    with pytest.raises(TaskAborted, match="why"):
        run.raise_if_aborted()
    assert listener.saw_runs == [run]


def test_process_that_is_being_ended_goes_on_to_no_other_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of a body waits for the kill that is on its way, but not for ever.

    agent: still runs, revokes | body: ends | parent: SIGTERM, to this task
    """
    monkeypatch.setattr("aioabort.worker.run.LONGEST_KILL", 0.2)
    run = new_run()
    run.is_killable = True
    assert run.condemn()
    start = time.monotonic()
    run.leave_body()
    assert time.monotonic() - start >= 0.2


def test_process_whose_body_is_over_is_not_ended() -> None:
    """The body came first: its process belongs to the next task.

    body: ends | agent: asks whether to revoke
    """
    run = new_run()
    assert not run.condemn()
    run.is_killable = True
    run.leave_body()
    assert not run.condemn()


def test_process_that_is_spared_goes_on() -> None:
    """A kill that could not be sent holds nothing up, and may be tried again."""
    run = new_run()
    run.is_killable = True
    assert run.condemn()
    threading.Timer(0.05, run.spare).start()
    start = time.monotonic()
    run.leave_body()
    assert time.monotonic() - start < LONGEST_KILL / 2
    run.is_killable = True
    assert run.condemn()


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE"])
def test_outcome_of_a_task_that_could_not_be_killed(state: str) -> None:
    """It says so, unless the task has seen the abort."""
    for seen, outcome in ((False, "unkillable"), (True, None)):
        run = new_run()
        run.observe(row(PENDING))
        run.is_unkillable = True
        if seen:
            run.is_aborted()
        run.end(state)
        assert run.outcome == (
            outcome or {"SUCCESS": "returned", "FAILURE": "failed"}[state]
        )


@pytest.mark.parametrize(
    ("state", "seen", "outcome"),
    [
        ("SUCCESS", True, "returned"),
        ("SUCCESS", False, "too_late"),
        ("FAILURE", True, "failed"),
        ("FAILURE", False, "too_late"),
        ("IGNORED", True, "aborted"),
        ("IGNORED", False, None),
        ("RETRY", True, None),
        ("REJECTED", True, None),
        (None, True, None),  # the process is being ended
    ],
)
def test_how_a_run_ends_decides_the_outcome(
    state: str | None, seen: bool, outcome: Outcome | None
) -> None:
    """Only a run that has really ended settles its request."""
    run = new_run()
    run.observe(row(PENDING))
    if seen:
        run.is_aborted()
    run.end(state)
    assert run.outcome == outcome


def test_a_replaced_task_has_not_ended() -> None:
    """``replace()`` ends the run by Ignore, but the id lives on in another task."""
    run = new_run()
    run.observe(row(PENDING))
    run.is_aborted()
    run.replaced = True
    run.end("IGNORED")
    assert run.outcome is None


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE"])
def test_stopping_the_redelivery_of_a_finished_run_is_too_late(state: str) -> None:
    """A result stored before the worker died is not taken for an abort.

    run stores its result | worker dies, request unsettled | redelivery is stopped
    """
    run = new_run(redelivered=True)
    run.observe(row(PENDING, state))
    run.is_aborted()
    run.honoured = True
    run.end("IGNORED")
    assert run.outcome == "too_late"
