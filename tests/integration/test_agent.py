"""The agent without a worker: outages, rights and forks."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from anyio import fail_after, to_thread
from celery import Celery
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded

from aioabort import AbortableTask
from aioabort.postgres.notifications import decode_notification, encode_notifications
from aioabort.postgres.request_store import RequestStore
from aioabort.worker.agent.agent import agent_for, stop_agents
from aioabort.worker.run import Run
from aioabort.worker.token import current
from tests.integration.steps import CONNECTIONS, end_run, start_run
from tests.support.apps import MakeApp
from tests.support.network import Network
from tests.support.waiting import BOUND, NEVER_POLLED, block_until, until

if TYPE_CHECKING:
    import asyncpg


async def has_no_connection(database: "asyncpg.Connection[Any]") -> bool:
    return await database.fetchval(CONNECTIONS) == 0


async def begin(app: Celery, task_id: str | None = None) -> Run:
    with fail_after(10):
        return await to_thread.run_sync(start_run, app, task_id)


async def outcome_of(store: RequestStore, task_id: str, expected: str) -> None:
    """Return when the request of the task is settled as *expected*."""

    async def recorded() -> str | None:
        row = (await store.read_aborts([task_id]))[task_id]
        assert row.request is not None
        return row.request.outcome

    assert await until(recorded) == expected


@pytest.mark.parametrize("notify", [True, False])
async def test_a_request_before_the_start_is_known_at_the_start(
    dsn: str, make_app: MakeApp, store: RequestStore, notify: bool
) -> None:
    """When the start check is over, the token is set."""
    app = make_app(dsn, aioabort_notify=notify, aioabort_poll_interval=3_600.0)
    task_id = str(uuid4())
    await store.request_aborts([task_id], "why")
    run = await begin(app, task_id)
    assert run.aborted
    assert run.request is not None
    assert run.request.reason == "why"


async def test_a_request_too_late_to_be_seen_is_settled_as_such(
    dsn: str, make_app: MakeApp, store: RequestStore
) -> None:
    """A request between the last query and the end of the task is not left pending.

    start: query | request, no notification, no poll | end | one more query
    """
    app = make_app(dsn, aioabort_poll_interval=3_600.0)
    run = await begin(app)
    await store.request_aborts([run.task_id])
    end_run(run)
    await begin(app)  # its query includes the ended run
    await outcome_of(store, run.task_id, "too_late")


async def test_a_run_that_a_signal_kept_from_being_watched(
    dsn: str, make_app: MakeApp, store: RequestStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end does not keep the ends of other runs from being reported.

    first: begins | soft time limit, before the agent watches it | ends | second: ends
    """
    app = make_app(dsn, aioabort_poll_interval=3_600.0)
    second = await begin(app)
    await store.request_aborts([second.task_id])
    agent = agent_for(app)
    first = Run(Context(id=str(uuid4()), hostname="worker@host"), agent)

    def interrupt(*_: object) -> None:
        raise SoftTimeLimitExceeded

    with monkeypatch.context() as patch:
        patch.setattr(agent._thread, "post", interrupt)
        with pytest.raises(SoftTimeLimitExceeded):
            agent.watch(first)
    # Both are collected at once, as the loop is woken by the first.
    reports: list[Callable[[], None]] = []
    with monkeypatch.context() as patch:
        patch.setattr(agent._thread, "post", reports.append)
        end_run(first, "RETRY")
        end_run(second)
    [collect] = reports
    agent._thread.post(collect)
    await begin(app)  # its query includes the ended run
    await outcome_of(store, second.task_id, "too_late")


async def test_one_query_serves_all_runs(app: Celery, store: RequestStore) -> None:
    """Many runs at once are watched by one connection, and each gets its own request."""
    with ThreadPoolExecutor(20) as threads:
        runs = list(threads.map(start_run, [app] * 200))
    asked = [run.task_id for run in runs[::2]]
    await store.request_aborts(asked, "why")
    await store.notify_workers(asked)
    await until(lambda: all(run.aborted for run in runs[::2]))
    assert not any(run.aborted for run in runs[1::2])


async def test_the_first_of_several_notifications_speaks_for_all(
    dsn: str, make_app: MakeApp, store: RequestStore
) -> None:
    """The runs that it names do not keep the others from being stopped.

    notification 1 of 3 | query | 200 coroutines are cancelled | 200 threads store
    results, and the loop waits for its turn | notification 2 of 3
    """
    app = make_app(dsn, aioabort_poll_interval=NEVER_POLLED)
    with ThreadPoolExecutor(20) as threads:
        runs = list(threads.map(start_run, [app] * 500))
    await until(lambda: polls_slowly(app))
    ids = [run.task_id for run in runs]
    await store.request_aborts(ids)
    first, *others = encode_notifications(ids)
    assert others
    await store.notify_workers(decode_notification(first) or [])
    await until(lambda: all(run.aborted for run in runs))


def polls_slowly(app: Celery) -> bool:
    """Whether the agent listens, and has queried all runs since."""
    due_at = agent_for(app)._monitor._poller._all.due_at
    return due_at - monotonic() > NEVER_POLLED


async def test_an_outage_reaches_no_task(
    network: Network,
    make_app: MakeApp,
    store: RequestStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While PostgreSQL is away, checks keep their answer and no start is delayed.

    run | reset | requests, unnoticed | runs begin and end | back | all is recorded
    """
    caplog.set_level(logging.INFO, "aioabort")
    app = make_app(network.dsn, aioabort_poll_interval=0.1)
    running, ending, aborted = [await begin(app) for _ in range(3)]
    await store.request_aborts([aborted.task_id])
    await until(lambda: aborted.aborted)
    await network.cut()
    await until(lambda: "trying again" in caplog.text)
    await store.request_aborts([running.task_id, ending.task_id], "during the outage")
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
    network: Network, make_app: MakeApp, store: RequestStore
) -> None:
    """A start that could not ask is asked for as soon as PostgreSQL is back."""
    app = make_app(network.dsn, aioabort_poll_interval=0.1)
    task_id = str(uuid4())
    await store.request_aborts([task_id])
    await network.cut()
    run = await begin(app, task_id)
    assert not run.aborted
    await network.mend()
    await until(lambda: run.aborted)


async def test_missing_rights_are_logged_and_harm_no_task(
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
    store: RequestStore,
    database: "asyncpg.Connection[Any]",
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What cannot be recorded is logged once, and the runs are still watched."""
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
        await store.request_aborts([first.task_id])
        await until(first.is_aborted)
        await until(lambda: "cannot record" in caplog.text)
        await store.request_aborts([second.task_id])
        await until(second.is_aborted)
        stop_agents()
    finally:
        await database.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_fork_starts_an_agent_of_its_own(
    dsn: str, make_app: MakeApp, store: RequestStore
) -> None:
    """A child does not use the connection of its parent, and does not harm it.

    parent: agent connected | fork | child: own agent, ends | parent: still notified
    """
    app = make_app(dsn, aioabort_poll_interval=3_600.0)
    run = await begin(app)
    task_id = str(uuid4())
    await store.request_aborts([task_id])
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if start_run(app, task_id).aborted else 2
        finally:
            os._exit(status)
    _, status = await to_thread.run_sync(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    await store.request_aborts([run.task_id])
    await store.notify_workers([run.task_id])
    await until(lambda: run.aborted)


async def test_stopping_reports_what_has_ended(
    app: Celery, store: RequestStore
) -> None:
    """The last task of a process is settled before its connection is closed."""
    run = await begin(app)
    await store.request_aborts([run.task_id])
    await store.notify_workers([run.task_id])
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
    assert await database.fetchval(CONNECTIONS) == 0
    await begin(app)
    await begin(app)
    assert await database.fetchval(CONNECTIONS) == 1
    await to_thread.run_sync(stop_agents)
    await until(lambda: has_no_connection(database))


async def test_another_task_is_asked_about_by_its_id(
    app: Celery, store: RequestStore
) -> None:
    """``is_aborted(task_id=…)`` asks PostgreSQL about a task that does not run here."""

    @app.task(bind=True, base=AbortableTask, shared=False)
    def check(self: AbortableTask[..., None]) -> None: ...

    task_id = str(uuid4())
    assert not await to_thread.run_sync(lambda: check.is_aborted(task_id=task_id))
    await store.request_aborts([task_id])
    assert await to_thread.run_sync(
        lambda: check.is_aborted(task_id=task_id, ignored="as in the original")
    )


async def test_a_check_by_id_in_a_helper_thread_is_seen(
    dsn: str, make_app: MakeApp, store: RequestStore
) -> None:
    """A thread without context asks about the task that runs in its process.

    task: runs | request, no notification, no poll | thread: asks by id
    """
    app = make_app(dsn, aioabort_notify=False, aioabort_poll_interval=NEVER_POLLED)

    @app.task(bind=True, base=AbortableTask, shared=False)
    def check(self: AbortableTask[..., None]) -> None: ...

    run = await begin(app)
    assert not await to_thread.run_sync(lambda: check.is_aborted(task_id=run.task_id))
    await store.request_aborts([run.task_id])
    with run.shield():
        assert not await to_thread.run_sync(
            lambda: check.is_aborted(task_id=run.task_id)
        )
    assert not run.seen
    assert await to_thread.run_sync(lambda: check.is_aborted(task_id=run.task_id))
    assert run.seen
    end_run(run)
    await to_thread.run_sync(stop_agents)
    await outcome_of(store, run.task_id, "returned")


async def test_a_check_by_id_in_a_forked_child(
    dsn: str, make_app: MakeApp, store: RequestStore
) -> None:
    """A child of the task's own asks PostgreSQL: the agent sets only its parent's token.

    task: runs, forks | request, no notification, no poll | child: asks by id
    """
    app = make_app(dsn, aioabort_notify=False, aioabort_poll_interval=NEVER_POLLED)

    @app.task(bind=True, base=AbortableTask, shared=False)
    def check(self: AbortableTask[..., None]) -> None: ...

    run = await begin(app)
    asked, ready = os.pipe()
    reset = current.set(run)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if not check.is_aborted(task_id=run.task_id):
                os.write(ready, b".")
                block_until(lambda: check.is_aborted(task_id=run.task_id))
                status = 0
        finally:
            os._exit(status)
    current.reset(reset)
    os.close(ready)
    assert await to_thread.run_sync(os.read, asked, 1) == b"."
    os.close(asked)
    await store.request_aborts([run.task_id])
    _, status = await to_thread.run_sync(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


SPAWNED = """
import sys
from celery import Celery
from aioabort import AbortableTask

_, dsn, task_id = sys.argv
app = Celery("spawned", broker="memory://")
app.conf.aioabort_dsn = dsn

@app.task(base=AbortableTask)
def check():
    pass

before = check.is_aborted(task_id=task_id)
print(before, flush=True)
sys.stdin.readline()
print(check.is_aborted(task_id=task_id), flush=True)
"""


async def test_a_check_by_id_in_a_spawned_process(
    app: Celery, dsn: str, store: RequestStore
) -> None:
    """A process that has nothing but the id finds the abort, too."""
    run = await begin(app)
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SPAWNED, dsn, run.task_id),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert program.stdout is not None
    with fail_after(BOUND):
        assert await program.stdout.readline() == b"False\n"
        await store.request_aborts([run.task_id])
        assert await program.communicate(b"\n") == (b"True\n", None)


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
