"""What a run does with a row from PostgreSQL and a state from Celery."""

import signal
import threading
import time
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime
from typing import NoReturn

import pytest
from celery import Celery
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded

from aioabort import AbortRequest, TaskAborted
from aioabort.models import Outcome, TaskRow
from aioabort.timing import Timing
from aioabort.worker.execution.task_wrapper import run_abortable
from aioabort.worker.run import Phase, Run
from aioabort.worker.token import current
from tests.support.runs import PENDING, RecordingSupervisor
from tests.support.waiting import BOUND, block_until

SETTLED = replace(PENDING, outcome="aborted")
LATER = replace(SETTLED, requested_at=datetime(2026, 1, 2, tzinfo=UTC))


def new_run(
    *, redelivered: bool = False, timing: Timing | None = None, **facts: object
) -> Run:
    delivery = {"redelivered": redelivered}
    context = Context(id="id", hostname="w@h", delivery_info=delivery, **facts)
    return Run(context, RecordingSupervisor(timing))


def row(request: AbortRequest | None, state: str | None = "ABORTED") -> TaskRow:
    return TaskRow(task_id="id", state=state, request=request)


@pytest.mark.parametrize(
    ("polls", "redelivered", "aborted"),
    [
        ([None], False, False),
        ([None, PENDING], False, True),
        ([PENDING], False, True),
        ([PENDING], True, True),
        # A settled request is over for a new publication of the id, however often it
        # is polled, but it ended the very run that is delivered again.
        ([SETTLED, SETTLED], False, False),
        ([SETTLED], True, True),
        # A duplicate delivery elsewhere settled a request made since this run began.
        ([None, SETTLED], False, True),
        ([SETTLED, LATER], False, True),
        ([SETTLED, replace(LATER, outcome=None)], False, True),
    ],
)
def test_which_requests_abort_a_run(
    polls: list[AbortRequest | None], redelivered: bool, aborted: bool
) -> None:
    """A request is for one run and its redeliveries."""
    run = new_run(redelivered=redelivered)
    for request in polls:
        run.apply_poll(request and row(request))
    assert run.aborted is aborted


@pytest.mark.parametrize(
    ("redelivered", "retries", "published", "aborted"),
    [
        # The same publication: published before the abort was requested.
        (True, 0, -10, True),
        (False, 1, -10, True),
        # The clock of the process that published it is ahead of PostgreSQL's.
        (True, 0, 50, True),
        (False, 1, 50, True),
        # A new publication of the same id, long after.
        (True, 0, 3_600, False),
        (False, 1, 3_600, False),
        # A new publication, of this moment or by a clock that is behind.
        (False, 0, 10, False),
        (False, 0, -10, False),
    ],
)
def test_runs_of_one_publication(
    *, redelivered: bool, retries: int, published: float, aborted: bool
) -> None:
    """A settled request stops all runs of the publication that it was for.

    run 1: publishes its retry, dies | broker: delivers run 1 again, and the retry |
    one of them: aborted, its request settled | the other one: begins, polls
    """
    run = new_run(
        redelivered=redelivered,
        retries=retries,
        aioabort_published_at=SETTLED.requested_at.timestamp() + published,
    )
    run.apply_poll(row(SETTLED))
    assert run.aborted is aborted


def test_first_poll_that_finds_nothing() -> None:
    """The start check waits for a poll, not for a row."""
    run = new_run()
    assert not run.first_poll_done.is_set()
    run.apply_poll(None)
    assert run.first_poll_done.is_set()


def test_outage_at_the_start() -> None:
    """A request that was settled before the start is not for this run.

    start | outage: the start goes on | poll: a request settled before the start
    """
    run = new_run()
    run.first_poll_done.set()
    run.apply_poll(row(SETTLED))
    assert not run.aborted


def test_seen_is_reported_once() -> None:
    """However often a task checks, the request is recorded as seen once."""
    supervisor = RecordingSupervisor()
    run = Run(Context(id="id", hostname="w@h"), supervisor)
    assert not run.is_aborted()
    run.apply_poll(row(PENDING))
    assert run.is_aborted()
    assert run.is_aborted()
    with pytest.raises(TaskAborted, match="why"):
        run.raise_if_aborted()
    assert supervisor.seen == [run]


def test_process_that_is_being_killed_begins_no_other_task() -> None:
    """The end of a body waits for a kill that is on its way, but not for ever.

    agent: body still runs, revokes | body: ends | main process: SIGTERM, to this task
    """
    run = new_run(timing=Timing(kill_wait=0.2))
    run.enter_body()
    assert run.claim_for_kill()
    start = time.monotonic()
    run.leave_body()
    assert time.monotonic() - start >= 0.2


def test_process_whose_body_is_over_is_not_killed() -> None:
    """The body ended first: its process belongs to the next task.

    body: ends | agent: asks whether to revoke
    """
    run = new_run()
    assert not run.claim_for_kill()
    run.enter_body()
    run.leave_body()
    assert not run.claim_for_kill()


def test_kill_that_could_not_be_sent() -> None:
    """The body ends without a wait, and the kill may be tried again."""
    run = new_run(timing=Timing(kill_wait=BOUND))
    run.enter_body()
    assert run.claim_for_kill()
    threading.Timer(0.05, run.release).start()
    start = time.monotonic()
    run.leave_body()
    assert time.monotonic() - start < BOUND / 2
    run.enter_body()
    assert run.claim_for_kill()


def test_process_ends_with_the_kill() -> None:
    """SIGTERM raises SystemExit in the body, and nothing delays the end of the process.

    agent: body still runs, revokes | main process: SIGTERM | body: SystemExit
    """
    run = new_run(timing=Timing(kill_wait=BOUND))
    app = Celery("app", set_as_current=False)

    @app.task(name="task", shared=False)
    def task() -> None: ...

    def body() -> NoReturn:
        assert run.claim_for_kill()
        raise SystemExit

    def in_task() -> None:
        current.set(run)
        task.push_request(id="id", called_directly=False)
        with pytest.raises(SystemExit):
            run_abortable(task, body, (), {})

    start = time.monotonic()
    copy_context().run(in_task)
    assert time.monotonic() - start < BOUND / 2
    assert run.phase is Phase.OUT_OF_BODY


def test_soft_time_limit_while_a_body_waits_for_its_kill() -> None:
    """It comes too late for the body, and must not replace REVOKED by a FAILURE.

    agent: revokes | body: ends, waits | pool: SIGUSR1 | main process: SIGTERM
    """
    run = new_run(timing=Timing(kill_wait=BOUND))
    is_raised = threading.Event()

    def on_signal(*_: object) -> None:
        is_raised.set()
        raise SoftTimeLimitExceeded

    def limit() -> None:
        block_until(lambda: run.phase is Phase.OUT_OF_BODY)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        assert is_raised.wait(BOUND)
        run.release()

    run.enter_body()
    assert run.claim_for_kill()
    previous = signal.signal(signal.SIGUSR1, on_signal)
    thread = threading.Thread(target=limit)
    thread.start()
    try:
        run.leave_body()
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, previous)


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE"])
def test_outcome_of_a_task_that_could_not_be_killed(state: str) -> None:
    """It is "unkillable", unless the task has seen the abort."""
    for seen, outcome in ((False, "unkillable"), (True, None)):
        run = new_run()
        run.apply_poll(row(PENDING))
        run.mark_unkillable()
        if seen:
            run.is_aborted()
        run.mark_ended(state)
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
        ("IGNORED", False, "too_late"),
        ("RETRY", True, None),
        ("REJECTED", True, None),
        (None, True, None),  # the process is being killed
    ],
)
def test_celerys_state_decides_the_outcome(
    state: str | None, seen: bool, outcome: Outcome | None
) -> None:
    """Only a run that has really ended settles its request."""
    run = new_run()
    run.apply_poll(row(PENDING))
    if seen:
        run.is_aborted()
    run.mark_ended(state)
    assert run.outcome == outcome


def test_a_replaced_task_has_not_ended() -> None:
    """``replace()`` ends the run by Ignore, but another task takes over the id."""
    run = new_run()
    run.apply_poll(row(PENDING))
    run.is_aborted()
    run.mark_replaced()
    run.mark_ended("IGNORED")
    assert run.outcome is None


@pytest.mark.parametrize(
    ("ended", "stored", "outcome"),
    [
        ("IGNORED", "ABORTED", "aborted"),
        ("IGNORED", "SUCCESS", "returned"),
        ("IGNORED", "FAILURE", "failed"),
        ("SUCCESS", "FAILURE", "returned"),
    ],
)
def test_result_that_the_task_has_stored_itself(
    ended: str, stored: str, outcome: Outcome
) -> None:
    """It decides, if Celery stores none because the task raised Ignore."""
    run = new_run()
    run.apply_poll(row(PENDING))
    run.is_aborted()
    run.mark_ended(ended)
    assert run.outcome_beside(stored) == outcome


@pytest.mark.parametrize("state", ["SUCCESS", "FAILURE"])
def test_stopping_the_redelivery_of_a_finished_run_is_too_late(state: str) -> None:
    """The outcome is not "aborted": the result was stored before the worker died.

    run stores its result | worker dies, request unsettled | redelivery is stopped
    """
    run = new_run(redelivered=True)
    run.apply_poll(row(PENDING, state))
    run.is_aborted()
    run.mark_honoured()
    run.mark_ended("IGNORED")
    assert run.outcome == "too_late"


def test_phases() -> None:
    """The body may be entered more than once; the start check belongs to the first time."""
    run = new_run()
    assert run.phase is Phase.CREATED
    run.mark_watched()
    assert run.phase is Phase.CHECKING
    run.enter_body()
    run.mark_watched()
    assert run.phase is Phase.IN_BODY
    run.leave_body()
    assert run.phase is Phase.OUT_OF_BODY
    run.enter_body()
    run.leave_body()
    assert not run.has_ended
    run.mark_ended("FAILURE")
    assert run.has_ended
    assert not run.is_lost
    run.mark_lost()
    assert run.has_ended
    assert run.is_lost


def test_signal_before_the_start_check() -> None:
    """A run that no supervisor watches is not reported at its end.

    wrapper: entered | soft time limit | supervisor: never asked | wrapper: left
    """
    run = new_run()
    run.leave_body()
    assert run.phase is Phase.CREATED


def test_failure_that_celery_lost() -> None:
    """The outcome is that of a failure, whatever Celery reported first."""
    run = new_run()
    run.apply_poll(row(PENDING))
    run.is_aborted()
    run.mark_ended(None)
    assert run.outcome is None
    run.mark_lost()
    assert run.outcome == "failed"
