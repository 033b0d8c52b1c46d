"""The worker's agent without a worker: outages, rights and forks."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from anyio import fail_after, sleep, to_thread
from celery import Celery
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded

from aioabort import AbortableTask
from aioabort.postgres.hints import decode_hint, encode_hints
from aioabort.postgres.store import Store
from aioabort.worker.agent import agent_for, stop_agents
from aioabort.worker.run import Run
from tests.integration.conftest import Network
from tests.integration.steps import until

if TYPE_CHECKING:
    import asyncpg

MakeApp = Callable[..., Celery]

#: So long that a test which depends on the poll would time out.
NEVER_POLLED = 3_600.0

AGENTS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'aioabort'
"""


@pytest.fixture(autouse=True)
def no_agents() -> Iterator[None]:
    """Each test starts agents of its own."""
    yield
    stop_agents()


def start_run(app: Celery, task_id: str | None = None) -> Run:
    """Begin a run as a pool's thread does."""
    request = Context(id=task_id or str(uuid4()), hostname="worker@host")
    run = Run(request, agent_for(app))
    run.supervisor.begin(run)
    run.supervisor.wait_for_look(run)
    return run


def end_run(run: Run, state: str = "SUCCESS") -> None:
    run.end(state)
    run.supervisor.end(run)


async def begin(app: Celery, task_id: str | None = None) -> Run:
    with fail_after(10):
        return await to_thread.run_sync(start_run, app, task_id)


async def outcome_of(store: Store, task_id: str, expected: str) -> None:
    """Return when the request of the task is settled as *expected*."""
    outcome = None
    with fail_after(10):
        while outcome is None:
            row = (await store.observe([task_id]))[task_id]
            assert row.request is not None
            outcome = row.request.outcome
            await sleep(0.01)
    assert outcome == expected


@pytest.mark.parametrize("notify", [True, False])
async def test_a_request_before_the_start_is_known_at_the_start(
    dsn: str, make_app: MakeApp, store: Store, notify: bool
) -> None:
    """When the start check is over, the token is set."""
    app = make_app(dsn, aioabort_notify=notify, aioabort_poll_interval=3_600.0)
    task_id = str(uuid4())
    await store.request([task_id], "why")
    run = await begin(app, task_id)
    assert run.aborted
    assert run.request is not None
    assert run.request.reason == "why"


async def test_a_request_too_late_to_be_seen_is_settled_as_such(
    dsn: str, make_app: MakeApp, store: Store
) -> None:
    """A request between the last look and the end of the task is not left pending.

    start: look | request, no notification, no poll | end | one more look
    """
    app = make_app(dsn, aioabort_poll_interval=3_600.0)
    run = await begin(app)
    await store.request([run.task_id])
    end_run(run)
    await begin(app)  # takes the look at the ended run with it
    await outcome_of(store, run.task_id, "too_late")


async def test_a_run_that_a_signal_kept_from_being_watched(
    dsn: str, make_app: MakeApp, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end does not keep those of others from being reported.

    first: begins | soft time limit, before the agent is told | ends | second: ends
    """
    app = make_app(dsn, aioabort_poll_interval=3_600.0)
    second = await begin(app)
    await store.request([second.task_id])
    agent = agent_for(app)
    first = Run(Context(id=str(uuid4()), hostname="worker@host"), agent)

    def interrupt(*_: object) -> None:
        raise SoftTimeLimitExceeded

    with monkeypatch.context() as patch:
        patch.setattr(agent, "_post", interrupt)
        with pytest.raises(SoftTimeLimitExceeded):
            agent.begin(first)
    # Both are collected at once, as the loop is woken by the first.
    reports: list[Callable[[], None]] = []
    with monkeypatch.context() as patch:
        patch.setattr(agent, "_post", lambda act: reports.append(act) or True)
        end_run(first, "RETRY")
        end_run(second)
    [collect] = reports
    agent._post(collect)
    await begin(app)  # takes the look at the ended run with it
    await outcome_of(store, second.task_id, "too_late")


async def test_one_look_serves_all_runs(app: Celery, store: Store) -> None:
    """Many runs at once are watched by one connection, and each gets its own request."""
    with ThreadPoolExecutor(20) as threads:
        runs = list(threads.map(start_run, [app] * 200))
    asked = [run.task_id for run in runs[::2]]
    await store.request(asked, "why")
    await store.hint_workers(asked)
    await until(lambda: all(run.aborted for run in runs[::2]))
    assert not any(run.aborted for run in runs[1::2])


async def test_the_first_of_several_notifications_speaks_for_all(
    dsn: str, make_app: MakeApp, store: Store
) -> None:
    """Those who are named by it do not keep the others from being stopped.

    notification 1 of 3 | look | 200 coroutines are cancelled | 200 threads store
    results, and the loop waits for its turn | notification 2 of 3
    """
    app = make_app(dsn, aioabort_poll_interval=NEVER_POLLED)
    with ThreadPoolExecutor(20) as threads:
        runs = list(threads.map(start_run, [app] * 500))
    await until(lambda: polls_slowly(app))
    ids = [run.task_id for run in runs]
    await store.request(ids)
    first, *others = encode_hints(ids)
    assert others
    await store.hint_workers(decode_hint(first) or [])
    await until(lambda: all(run.aborted for run in runs))


def polls_slowly(app: Celery) -> bool:
    """Whether the agent hears notifications, and has looked at all since it does."""
    due_at = agent_for(app)._monitor._watcher._all.due_at
    return due_at - monotonic() > NEVER_POLLED


async def test_an_outage_reaches_no_task(
    network: Network,
    make_app: MakeApp,
    store: Store,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While PostgreSQL is away, checks keep their answer and starts are not held up.

    run | reset | requests: nobody is told | runs begin and end | back | all is known
    """
    caplog.set_level(logging.INFO, "aioabort")
    app = make_app(network.dsn, aioabort_poll_interval=0.1)
    running, ending, aborted = [await begin(app) for _ in range(3)]
    await store.request([aborted.task_id])
    await until(lambda: aborted.aborted)
    await network.cut()
    await until(lambda: "trying again" in caplog.text)
    await store.request([running.task_id, ending.task_id], "during the outage")
    started = await begin(app)
    assert (running.aborted, started.aborted, aborted.aborted) == (False, False, True)
    assert aborted.is_aborted()
    end_run(ending)
    end_run(aborted)
    await network.mend()
    await until(lambda: running.aborted)
    await outcome_of(store, ending.task_id, "too_late")
    await outcome_of(store, aborted.task_id, "returned")
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1, [r.getMessage() for r in warnings]
    assert "PostgreSQL answers again" in caplog.text


async def test_a_task_that_starts_in_an_outage_is_aborted_after_it(
    network: Network, make_app: MakeApp, store: Store
) -> None:
    """A start that could not ask is asked for as soon as PostgreSQL is back."""
    app = make_app(network.dsn, aioabort_poll_interval=0.1)
    task_id = str(uuid4())
    await store.request([task_id])
    await network.cut()
    run = await begin(app, task_id)
    assert not run.aborted
    await network.mend()
    await until(lambda: run.aborted)


async def test_missing_rights_are_told_and_harm_no_task(
    dsn: str,
    make_app: MakeApp,
    database: "asyncpg.Connection[Any]",
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A role that may not read our table: the log names it, and tasks run."""
    role = f"aioabort_{uuid4().hex}"
    await database.execute(f"CREATE ROLE {role} LOGIN")
    try:
        app = make_app(
            dsn.replace("//postgres@", f"//{role}@"),
            aioabort_poll_interval=0.1,
        )
        run = await begin(app)
        assert not run.is_aborted()
        end_run(run)
        assert "permission denied for" in caplog.text
        stop_agents()
    finally:
        await database.execute(f"DROP ROLE {role}")


async def test_a_role_that_may_only_read_still_sees_aborts(
    dsn: str,
    make_app: MakeApp,
    store: Store,
    database: "asyncpg.Connection[Any]",
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What cannot be recorded is told once, and the watching goes on."""
    role = f"aioabort_{uuid4().hex}"
    await database.execute(
        f"CREATE ROLE {role} LOGIN;"
        f"GRANT SELECT ON aioabort_request, celery_taskmeta TO {role}"
    )
    try:
        app = make_app(
            dsn.replace("//postgres@", f"//{role}@"), aioabort_poll_interval=0.1
        )
        first, second = await begin(app), await begin(app)
        await store.request([first.task_id])
        await until(first.is_aborted)
        await until(lambda: "cannot record" in caplog.text)
        await store.request([second.task_id])
        await until(second.is_aborted)
        stop_agents()
    finally:
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_fork_starts_an_agent_of_its_own(
    dsn: str, make_app: MakeApp, store: Store
) -> None:
    """A child neither uses nor harms the connection that its parent had.

    parent: agent connected | fork | child: own agent, ends | parent: still hears
    """
    app = make_app(dsn, aioabort_poll_interval=3_600.0)
    run = await begin(app)
    task_id = str(uuid4())
    await store.request([task_id])
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if start_run(app, task_id).aborted else 2
        finally:
            os._exit(status)
    _, status = await to_thread.run_sync(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    await store.request([run.task_id])
    await store.hint_workers([run.task_id])
    await until(lambda: run.aborted)


async def test_stopping_reports_what_has_ended(app: Celery, store: Store) -> None:
    """The last task of a process is settled before its connection is closed."""
    run = await begin(app)
    await store.request([run.task_id])
    await store.hint_workers([run.task_id])
    await until(run.is_aborted)
    end_run(run)
    await to_thread.run_sync(stop_agents)
    await outcome_of(store, run.task_id, "returned")


async def test_nothing_is_connected_before_or_after(
    app: Celery, database: "asyncpg.Connection[Any]"
) -> None:
    """An app costs no connection until its first abortable task, and one from then on."""

    @app.task(bind=True, base=AbortableTask, shared=False)
    def check(self: AbortableTask[..., bool]) -> bool:
        return self.is_aborted()

    assert check() is False
    assert await database.fetchval(AGENTS) == 0
    await begin(app)
    await begin(app)
    assert await database.fetchval(AGENTS) == 1
    await to_thread.run_sync(stop_agents)
    with fail_after(5):
        while await database.fetchval(AGENTS):
            await sleep(0.01)


async def test_another_task_is_asked_about_by_its_id(app: Celery, store: Store) -> None:
    """``is_aborted(task_id=…)`` asks PostgreSQL about a task that does not run here."""

    @app.task(bind=True, base=AbortableTask, shared=False)
    def check(self: AbortableTask[..., None]) -> None: ...

    task_id = str(uuid4())
    assert not await to_thread.run_sync(lambda: check.is_aborted(task_id=task_id))
    await store.request([task_id])
    assert await to_thread.run_sync(
        lambda: check.is_aborted(task_id=task_id, ignored="as in the original")
    )


async def test_another_task_cannot_be_asked_about_in_an_outage(
    network: Network, make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    """Then the answer is False, with a warning: a task is never harmed."""
    app = make_app(network.dsn, aioabort_poll_interval=0.1)

    @app.task(bind=True, base=AbortableTask, shared=False)
    def check(self: AbortableTask[..., None]) -> None: ...

    await begin(app)
    await network.cut()
    with fail_after(15):
        assert not await to_thread.run_sync(lambda: check.is_aborted(task_id="id"))
    assert "Cannot tell whether id is aborted" in caplog.text


def test_a_killed_process_needs_no_goodbye(app: Celery) -> None:
    """A child that is killed while it runs a task leaves the request to be found."""
    child = os.fork()
    if child == 0:
        start_run(app, "killed")
        os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert not start_run(app, "killed").aborted
