"""Results in Redis: waits in normal times, and while Redis is in trouble.

There is no worker here: a test stores results as a worker would.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from anyio import fail_after
from celery import Celery

from aioabort import AbortClient, StoreError, StoreUnavailable, WaitTimeout
from aioabort.client.redis_listener import RedisListener
from aioabort.external.redis_reader import RedisReader
from aioabort.timing import Timing
from tests.integration.steps import are_awaited, end, listening, new_ids, waiting_for
from tests.support.network import Network
from tests.support.redis_servers import RedisProgram, redis_program
from tests.support.waiting import BOUND, NEVER_POLLED, until

# Celery's own backend, with a redis-py that is newer.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex")


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisProgram]:
    """A Redis of the test's own, which keeps its data when it is started again."""
    with redis_program(tmp_path, "--appendonly", "yes") as program:
        yield program


def make(dsn: str, backend: str, **settings: Any) -> Celery:
    app = Celery("tests", broker="memory://", backend=backend, set_as_current=False)
    app.conf.update(aioabort_dsn=dsn, result_expires=60, **settings)
    return app


@pytest.fixture
def app(empty_dsn: str, redis_server: RedisProgram) -> Celery:
    """An app whose clients find nothing by polling, except after an outage."""
    return make(empty_dsn, redis_server.url, aioabort_poll_interval=NEVER_POLLED)


@pytest.fixture
async def client(app: Celery) -> AsyncIterator[AbortClient]:
    """A client that gets notifications."""
    async with AbortClient(app) as client:
        await listening(client)
        yield client


async def test_what_celery_publishes_ends_the_wait(
    client: AbortClient, task_id: str
) -> None:
    """Any worker of Celery's publishes the end of any task: no poll is needed."""
    waiting = await waiting_for(client, task_id)
    await end(client.app, task_id, {"n": [1, None]})
    with fail_after(BOUND):
        assert await waiting == {"n": [1, None]}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> "tuple[asyncio.Event, asyncio.Event]":
    """Hold what a client tells Redis to send: set when that begins, and to let it go."""
    send = RedisListener._send
    begun, go_on = asyncio.Event(), asyncio.Event()
    go_on.set()

    async def send_late(*args: Any) -> None:
        begun.set()
        await go_on.wait()
        await send(*args)

    monkeypatch.setattr(RedisListener, "_send", send_late)
    return begun, go_on


async def test_an_end_before_the_subscription_is_found(
    client: AbortClient, task_id: str, held: "tuple[asyncio.Event, asyncio.Event]"
) -> None:
    """The result is read after the server has confirmed the subscription.

    wait() | task ends, message to nobody | subscribed | read

    If it were read first, the end would come between that and the subscription.
    """
    begun, go_on = held
    go_on.clear()
    with fail_after(BOUND):
        waiting = asyncio.create_task(client.wait(task_id))
        await begun.wait()
        for _ in range(5):
            # A read that had begun before would be answered by now.
            await client.snapshot("another")
        await end(client.app, task_id, "value")
        go_on.set()
        assert await waiting == "value"


async def test_awaited_again_before_the_subscription_ends(
    client: AbortClient, task_id: str, held: "tuple[asyncio.Event, asyncio.Event]"
) -> None:
    """The client sends no command, so Redis confirms nothing: the task is read at once.

    wait() given up | task ends | wait() again | the server would be told: read
    """
    begun, go_on = held
    waiting = await waiting_for(client, task_id)
    begun.clear()
    go_on.clear()
    waiting.cancel()
    with fail_after(BOUND):
        await begun.wait()
        await end(client.app, task_id, "value")
        waiting = asyncio.create_task(client.wait(task_id))
        await are_awaited(client, 1)
        go_on.set()
        assert await waiting == "value"


async def test_only_what_is_awaited_is_subscribed_to(
    client: AbortClient, redis_server: RedisProgram
) -> None:
    """Other results of the same Redis cost this client nothing."""
    kept, given_up = [await waiting_for(client, task_id) for task_id in new_ids(2)]
    with redis_server.client() as observer:
        await until(lambda: len(observer.pubsub_channels()) == 2)
        given_up.cancel()
        await until(lambda: len(observer.pubsub_channels()) == 1)
        kept.cancel()
        await until(lambda: not observer.pubsub_channels())
        assert observer.pubsub_numpat() == 0


def _is_tcp(client: dict[str, str]) -> bool:
    """Whether the connection came by the port, as those of our observers do not."""
    return client["addr"].startswith("127.0.0.1:")


async def test_two_connections_for_many_waiters(
    client: AbortClient, redis_server: RedisProgram
) -> None:
    """One that reads, and one that listens, however many tasks are awaited."""
    task_ids = new_ids(1_500)
    await client.snapshot(task_ids[0])
    waiting = [asyncio.create_task(client.wait(task_id)) for task_id in task_ids]
    with redis_server.client() as observer:
        await until(lambda: len(observer.pubsub_channels()) == len(task_ids))
        assert len([each for each in observer.client_list() if _is_tcp(each)]) == 2
    await asyncio.gather(*(end(client.app, each, each) for each in task_ids[:20]))
    with fail_after(BOUND):
        assert await asyncio.gather(*waiting[:20]) == task_ids[:20]
    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting)


async def test_every_state_is_watched_as_it_is_published(
    client: AbortClient, task_id: str
) -> None:
    """Progress needs no poll either."""
    snapshots = client.watch(task_id)
    with fail_after(BOUND):
        assert (await anext(snapshots)).state == "PENDING"
        await end(client.app, task_id, {"files": 1}, "PROGRESS")
        assert (await anext(snapshots)).result == {"files": 1}
        await end(client.app, task_id, "value")
        assert (await anext(snapshots)).result == "value"
    await snapshots.aclose()


async def test_closed_connections_are_renewed(
    client: AbortClient, redis_server: RedisProgram, task_id: str
) -> None:
    """After the server has closed all connections, ends are noticed as before."""
    waiting = await waiting_for(client, task_id)
    redis_server.close_connections()
    await until(lambda: client.health().last_error)
    await listening(client)
    with redis_server.client() as observer:
        await until(lambda: len(observer.pubsub_channels()) == 1)
    await end(client.app, task_id, "value")
    with fail_after(BOUND):
        assert await waiting == "value"


async def test_an_end_during_the_outage_is_found(
    client: AbortClient, redis_server: RedisProgram, task_id: str
) -> None:
    """Redis starts again with what it has stored; its message reached no client.

    wait() | Redis ends | Redis starts, task ends | client connects: value
    """
    waiting = await waiting_for(client, task_id)
    redis_server.stop()
    await until(lambda: client.health().mode == "poll")
    assert not client.health().is_connected
    redis_server.start()
    await end(client.app, task_id, "value")
    with fail_after(BOUND):
        assert await waiting == "value"
    await until(lambda: client.health().is_connected)


async def test_a_server_that_goes_silent_is_left(
    empty_dsn: str, redis_server: RedisProgram, task_id: str
) -> None:
    """It closes no connection, and a ping tells: the client polls, and says so.

    Redis freezes | the pings are not answered: polling | Redis thaws: notified again
    """
    timing = Timing(heartbeat=0.1, heartbeat_timeout=0.2, statement_timeout=0.5)
    async with AbortClient(
        make(empty_dsn, redis_server.url, aioabort_timing=timing)
    ) as it:
        await listening(it)
        waiting = await waiting_for(it, task_id)
        redis_server.freeze()
        await until(lambda: it.health().mode == "poll")
        redis_server.thaw()
        await listening(it)
        await end(it.app, task_id, "value")
        with fail_after(BOUND):
            assert await waiting == "value"


async def test_a_frozen_server_holds_no_abort(
    empty_dsn: str, redis_server: RedisProgram
) -> None:
    """The request is committed although Redis does not say whether the task runs.

    Redis freezes | abort(): the read is given up | committed

    Later reads are given up sooner.
    """
    timing = Timing(statement_timeout=0.5)
    async with AbortClient(
        make(empty_dsn, redis_server.url, aioabort_timing=timing)
    ) as it:
        await it.snapshot("a")
        redis_server.freeze()
        with fail_after(BOUND):
            assert (await it.abort("a")).answer == "requested"
            with pytest.raises(StoreUnavailable, match=r"not answer within 0\.05 s"):
                await it.snapshot("a")
        redis_server.thaw()


async def test_a_large_result_holds_up_no_other(
    empty_dsn: str, redis_server: RedisProgram
) -> None:
    """It is read over a connection of its own, and the others do not wait for it.

    large result, small one | both awaited | network: 3 MB a connection | small value
    """
    proxy = Network(f"host=127.0.0.1 port={redis_server.port} user=redis dbname=none")
    proxy.most_bytes = 3_000_000
    await proxy.mend()
    app = make(empty_dsn, f"redis://127.0.0.1:{proxy.port}/0")
    direct = make(empty_dsn, redis_server.url)
    large, small, later = new_ids(3)
    await end(direct, large, "x" * 5_000_000)
    await end(direct, small, "small")
    async with AbortClient(app) as client:
        waiting = asyncio.create_task(client.wait(large))
        with fail_after(BOUND):
            assert await client.wait(small) == "small"
            following = await waiting_for(client, later)
            await end(direct, later, "later")
            assert await following == "later"
            assert not waiting.done()
        waiting.cancel()
    await proxy.cut()


async def test_large_results_arrive(client: AbortClient) -> None:
    """Those that a shared read leaves out: of tasks that have ended, and that end."""
    before, after, seen = new_ids(3)
    large = "x" * 2_500_000
    await end(client.app, before, large)
    await end(client.app, seen, large)
    with fail_after(BOUND):
        assert await client.wait(before) == large
        waiting = await waiting_for(client, after)
        await end(client.app, after, large)
        assert await waiting == large
        assert (await client.snapshot(seen)).result == large
        [receipt] = await client.abort([seen])
        assert receipt.answer == "finished"


async def test_a_user_without_scripts_reads_all_the_same(
    empty_dsn: str, redis_server: RedisProgram, task_id: str
) -> None:
    """The rights that Celery itself needs are enough."""
    with redis_server.client() as admin:
        admin.acl_setuser(
            "celery",
            enabled=True,
            passwords=["+pw"],
            keys=["*"],
            channels=["*"],
            categories=["+@all", "-@scripting"],
        )
    url = redis_server.url.replace("//", "//celery:pw@")
    app = make(empty_dsn, url, aioabort_poll_interval=NEVER_POLLED)
    async with AbortClient(app) as client:
        await listening(client)
        waiting = await waiting_for(client, task_id)
        await end(app, task_id, "value")
        with fail_after(BOUND):
            assert await waiting == "value"


async def test_a_key_of_another_kind_is_the_error_of_its_task(
    client: AbortClient, redis_server: RedisProgram, task_id: str
) -> None:
    """No other task is harmed."""
    odd = str(uuid4())
    with redis_server.client() as other:
        other.lpush(f"celery-task-meta-{odd}", "1")
    await end(client.app, task_id, "value")
    with fail_after(BOUND):
        answers = await asyncio.gather(
            client.wait(odd), client.wait(task_id), return_exceptions=True
        )
    assert "WRONGTYPE" in str(answers[0])
    assert answers[1] == "value"


async def test_an_undecodable_result_names_the_setting(
    client: AbortClient, redis_server: RedisProgram, task_id: str
) -> None:
    """The error is Celery's, with a note that names the task and the setting."""
    with redis_server.client() as other:
        other.set(f"celery-task-meta-{task_id}", "no json")
    with (
        fail_after(BOUND),
        pytest.raises(Exception, match=r"Expecting value") as caught,
    ):
        await client.wait(task_id)
    [note] = caught.value.__notes__
    assert task_id in note
    assert "result_backend" in note


@pytest.mark.parametrize("place", ["url", "setting"])
async def test_a_wrong_password_is_refused_and_not_shown(
    empty_dsn: str, tmp_path: Path, task_id: str, place: str
) -> None:
    """A later try does not help: the wait ends, and names the setting."""
    with redis_program(tmp_path, "--requirepass", "right") as server:
        app = make(empty_dsn, server.url, aioabort_poll_interval=0.1)
        if place == "url":
            app.conf.result_backend = server.url.replace("//", "//:s3cretWord@")
        else:
            app.conf.redis_password = "s3cretWord"
        async with AbortClient(app) as client:
            with fail_after(BOUND), pytest.raises(StoreError) as caught:
                await client.wait(task_id)
            assert not isinstance(caught.value, StoreUnavailable)
            assert "setting result_backend" in str(caught.value)
            texts = [str(caught.value), repr(caught.value.__cause__)]
            await until(lambda: client.health().last_error)
            texts.append(client.health().last_error or "")
            assert "s3cretWord" not in "".join(texts)


async def test_a_server_that_is_away_is_named(empty_dsn: str, task_id: str) -> None:
    """The wait goes on; its time-out says why, and shows no password."""
    app = make(empty_dsn, "redis://:s3cretWord@127.0.0.1:1/0")
    async with AbortClient(app) as client:
        with pytest.raises(WaitTimeout, match=r"setting result_backend") as caught:
            await client.wait(task_id, timeout=1.0)
    assert "s3cretWord" not in str(caught.value)


async def test_results_flow_while_postgresql_is_silent(
    network: Network, redis_server: RedisProgram
) -> None:
    """The requests are read before the results; while none come, they get less time.

    wait() | PostgreSQL is silent | tasks end, one after the other: values
    """
    timeout, task_ids = 3.0, new_ids(6)
    timing = Timing(statement_timeout=timeout)
    app = make(network.dsn, redis_server.url, aioabort_timing=timing)
    async with AbortClient(app) as client:
        await listening(client)
        waiting = [await waiting_for(client, task_id) for task_id in task_ids]
        network.drop()
        with fail_after(timeout * len(task_ids)):
            for task_id, each in zip(task_ids, waiting, strict=True):
                await end(app, task_id, "value")
                assert await each == "value"
        await network.mend()


async def test_reads_are_shared_and_need_no_thread(
    client: AbortClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who begin to wait together share one read."""
    task_ids = new_ids(50)
    for task_id in task_ids:
        await end(client.app, task_id, task_id)
    reads: list[int] = []
    read = RedisReader.read

    async def counted(self: RedisReader, ids: list[str], *args: Any) -> Any:
        reads.append(threading.get_ident())
        return await read(self, ids, *args)

    monkeypatch.setattr(RedisReader, "read", counted)
    with fail_after(BOUND):
        assert await asyncio.gather(*map(client.wait, task_ids)) == task_ids
    assert len(reads) <= 3
    assert set(reads) == {threading.get_ident()}
    assert not [each for each in threading.enumerate() if "results" in each.name]
