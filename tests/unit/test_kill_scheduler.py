"""The end of a grace, where PostgreSQL or the broker does not answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from anyio import to_thread
from celery import Celery
from celery.app.task import Context

from aioabort.exceptions import StoreBusy, StoreUnavailable
from aioabort.timing import Timing
from aioabort.worker.agent import kill_scheduler
from aioabort.worker.agent.kill_scheduler import KillScheduler
from aioabort.worker.run import Run
from tests.support.runs import PENDING, RecordingSupervisor
from tests.support.waiting import until

#: Seconds that no body is held.
SOON = 5.0

#: How long a body waits that is held.
HELD = Timing(kill_wait=2 * SOON)


class Store:
    """Claims kills, after *may_answer*; the first claims may lose their answer."""

    def __init__(self, lost_answers: int = 0) -> None:
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.claims = 0
        self.postponed: list[float] = []
        self._lost_answers = lost_answers
        self._is_due = True

    async def claim_kill(self, _: object) -> bool:
        self.claims += 1
        await self.may_answer.wait()
        is_due, self._is_due = self._is_due, False
        if self.claims <= self._lost_answers:
            raise StoreUnavailable("PostgreSQL is away")
        return is_due

    async def shorten_grace(self, _: object, grace: float) -> None:
        self.postponed.append(grace)
        self._is_due = True

    async def claim_overdue_kills(self, _: float) -> list[str]:
        return []


class NoRuns:
    """The runs of a process that has none."""

    apps: set[Celery] = set()  # noqa: RUF012

    def __len__(self) -> int:
        return 0


@pytest.fixture(autouse=True)
def in_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a child of a prefork pool."""
    monkeypatch.setattr(kill_scheduler, "is_main_process", lambda: False)


class Revoked(list[str]):
    """The tasks that an app's workers have to kill."""

    def __init__(self, app: Celery, error: Exception | None = None) -> None:
        super().__init__()
        self._error = error
        app.control.revoke = self._revoke  # type: ignore[method-assign]

    def _revoke(self, task_id: str, **_: object) -> None:
        self.append(task_id)
        if self._error is not None:
            raise self._error


@pytest.fixture
def app() -> Celery:
    return Celery("app", broker="memory://", set_as_current=False)


def running(app: Celery | None = None) -> Run:
    """Return a run in its body that has to be killed."""
    run = Run(Context(id="id", hostname="w@h"), RecordingSupervisor(HELD), app)
    run.abort(PENDING)
    run.enter_body()
    return run


@asynccontextmanager
async def scheduled(
    scheduler: KillScheduler, store: Any
) -> AsyncIterator["asyncio.Task[None]"]:
    task: Any = asyncio.create_task(scheduler.run(store, NoRuns()))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def leaves(run: Run) -> None:
    """Check that the body may end, at once."""
    async with asyncio.timeout(SOON):
        await to_thread.run_sync(run.leave_body, abandon_on_cancel=True)


async def test_a_frozen_server_holds_nothing(app: Celery) -> None:
    """The body ends while PostgreSQL does not answer, and then nothing is killed.

    claim is sent | the body ends | the answer: this process has to kill
    """
    revoked, store, run = Revoked(app), Store(), running()
    store.may_answer.clear()
    scheduler = KillScheduler(app, Timing(kill_overdue=SOON))
    async with scheduled(scheduler, store):
        scheduler.schedule(run, 0)
        await until(lambda: store.claims)
        await leaves(run)
        run.mark_ended("SUCCESS")
        store.may_answer.set()
        scheduler.schedule(second := running(), 0)
        await until(lambda: second.task_id and store.claims == 2)
    assert revoked == []


async def test_a_frozen_broker_holds_nothing() -> None:
    """The body ends while the broker does not answer.

    claimed | the broker accepts the connection, and is silent | the body ends
    """
    silent: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(
        lambda _, writer: silent.append(writer), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    app = Celery("app", broker=f"redis://127.0.0.1:{port}", set_as_current=False)
    run, scheduler = running(), KillScheduler(app, Timing(kill_overdue=SOON))
    async with scheduled(scheduler, Store()):
        scheduler.schedule(run, 0)
        await until(lambda: silent)
        try:
            await leaves(run)
        finally:
            run.mark_ended("SUCCESS")
            server.close()
            for writer in silent:
                writer.transport.abort()


async def test_the_answer_to_a_claim_is_lost(app: Celery) -> None:
    """The kill is claimed once more over the next connection, and carried out.

    claim is committed, its answer is lost | the next connection: claimed again, killed
    """
    revoked, store, run = Revoked(app), Store(lost_answers=1), running()
    scheduler = KillScheduler(app, Timing(kill_overdue=SOON))
    async with scheduled(scheduler, store) as first:
        scheduler.schedule(run, 0)
        with pytest.raises(StoreUnavailable):
            await first
    assert (revoked, store.postponed) == ([], [])
    async with scheduled(scheduler, store):
        await until(lambda: revoked)
    assert (revoked, store.postponed) == (["id"], [0.0])


async def test_the_broker_is_that_of_the_runs_app(app: Celery) -> None:
    """Apps with the same settings share the agent that the first one has started."""
    other = Celery("other", broker="memory://", set_as_current=False)
    revoked, others = Revoked(app), Revoked(other)
    scheduler = KillScheduler(app, Timing(kill_overdue=SOON))
    async with scheduled(scheduler, Store()):
        scheduler.schedule(running(other), 0)
        await until(lambda: others)
    assert revoked == []


@pytest.mark.parametrize(
    ("error", "postponed"), [(ConnectionError("away"), [SOON]), (TypeError("bug"), [])]
)
async def test_what_fails_is_repeated_if_that_may_help(
    app: Celery, error: Exception, postponed: list[float]
) -> None:
    """The body is not held until then. A bug would fail again, so it is only logged."""
    revoked, store, run = Revoked(app, error), Store(), running()
    scheduler = KillScheduler(app, Timing(kill_overdue=SOON))
    async with scheduled(scheduler, store):
        scheduler.schedule(run, 0)
        await until(lambda: revoked)
        await leaves(run)
        # Carried out after the first one.
        scheduler.schedule(second := running(), 0)
        await until(lambda: second.task_id and store.claims == 2)
    assert store.postponed[:1] == postponed


async def test_a_body_that_is_over_is_not_killed(app: Celery) -> None:
    """Between two methods of the task; if it goes on, it is killed later."""
    revoked, store, run = Revoked(app), Store(), running()
    run.leave_body()
    scheduler = KillScheduler(app, Timing(kill_overdue=0.1))
    async with scheduled(scheduler, store):
        scheduler.schedule(run, 0)
        await until(lambda: store.postponed)
        assert revoked == []
        run.enter_body()
        await until(lambda: revoked)


async def test_a_locked_request_delays_the_kill(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is claimed again, on the same connection.

    grace over | claim, locked | claim, locked | claimed: the pool cannot kill
    """

    class LockedStore(Store):
        async def claim_kill(self, _: object) -> bool:
            self.claims += 1
            if self.claims <= 2:
                raise StoreBusy("PostgreSQL is busy: locked")
            return True

    monkeypatch.setattr(
        kill_scheduler, "_obstacle", lambda _: "its pool has no process"
    )
    store, run = LockedStore(), running()
    scheduler = KillScheduler(app, Timing(kill_overdue=SOON, kill_claim_again=0.0))
    async with scheduled(scheduler, store):
        scheduler.schedule(run, 0)
        await until(lambda: store.claims == 3)
    run.mark_ended("SUCCESS")
    assert run.outcome == "unkillable"
