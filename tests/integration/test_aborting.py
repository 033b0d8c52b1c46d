"""Aborting one and many: what is asked, what is answered, and what is refused.

There is no worker here: a test stores results as a worker would.
"""

import asyncio
import pickle
from collections.abc import Callable
from copy import copy
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import asyncpg
import pytest
from anyio import fail_after, to_thread
from celery import Celery, chain, chord, group, states
from celery.exceptions import ImproperlyConfigured
from celery.result import (
    AsyncResult,
    EagerResult,
    GroupResult,
    ResultSet,
    result_from_tuple,
)

from aioabort import (
    AbortableAsyncResult,
    AbortableTask,
    AbortClient,
    AbortReceipt,
    AioabortError,
    ClientClosed,
    InvalidRequest,
    ResultsElsewhere,
    StoreError,
)
from aioabort.postgres.notifications import decode_notification
from aioabort.postgres.request_store import RequestStore
from tests.integration.conftest import Stranger
from tests.integration.steps import end, new_ids
from tests.support.apps import MakeApp
from tests.support.network import Network
from tests.support.waiting import until

Database: TypeAlias = "asyncpg.Connection[Any]"

REQUESTS = "SELECT count(*) FROM aioabort_request"


def bare(receipt: AbortReceipt) -> tuple[str, str]:
    return receipt.task_id, receipt.answer


@pytest.fixture
def step(app: Celery) -> Callable[..., Any]:
    """Makes signatures of a task that no worker runs."""

    @app.task(base=AbortableTask, shared=False)
    def step(number: int) -> int:
        return number

    signature: Callable[..., Any] = step.si
    return signature


async def test_one_receipt_for_one_and_a_list_for_many(
    app: Celery, client: AbortClient
) -> None:
    """An id or a result is one; an iterable is many, also if it has but one item."""
    one, two, three, four, five = new_ids(5)
    assert bare(await client.abort(one)) == (one, "requested")
    plain: AsyncResult[Any] = AsyncResult(two, app=app)
    assert bare(await client.abort(plain)) == (two, "requested")
    assert bare(await client.abort(client.result(three))) == (three, "requested")
    for many in ([four], (four,), {four}, iter([four]), {four: None}.keys()):
        [receipt] = await client.abort(many)
        assert receipt.task_id == four
    [receipt] = await client.abort(GroupResult("group", [AsyncResult(five, app=app)]))
    assert bare(receipt) == (five, "requested")


async def test_receipts_are_in_the_order_of_what_was_asked(
    app: Celery, client: AbortClient
) -> None:
    """Ids, results, groups and groups of groups, with duplicates and all answers."""
    ids = sorted(new_ids(8), reverse=True)
    await client.abort(ids[1], reason="first", requested_by="alice")
    await end(app, ids[2], "value", states.SUCCESS)
    await end(app, ids[6], ValueError("x"), states.FAILURE)
    results = [AsyncResult(task_id, app=app) for task_id in ids]
    inner = GroupResult("inner", results[4:6])
    outer: Any = GroupResult("outer", [results[3], inner])
    receipts = await client.abort(
        [ids[0], results[1], ids[2], outer, ResultSet([results[6]]), ids[0], ids[7]],
        reason="second",
        requested_by="bob",
    )
    assert [bare(receipt) for receipt in receipts] == [
        (ids[0], "requested"),
        (ids[1], "requested_before"),
        (ids[2], "finished"),
        (ids[3], "requested"),
        (ids[4], "requested"),
        (ids[5], "requested"),
        (ids[6], "finished"),
        (ids[0], "requested"),
        (ids[7], "requested"),
    ]
    assert [receipt.state for receipt in receipts if receipt.state] == [
        "SUCCESS",
        "FAILURE",
    ]
    before = receipts[1].request
    assert before is not None
    assert (before.reason, before.requested_by) == ("first", "alice")
    now = receipts[0].request
    assert now is not None
    assert (now.reason, now.requested_by) == ("second", "bob")
    assert abs(datetime.now(UTC) - now.requested_at) < timedelta(minutes=5)


async def test_a_hundred_thousand_ids(client: AbortClient, database: Database) -> None:
    """All are asked, in order, while the loop serves others."""
    ids = new_ids(100_000)
    loop = asyncio.get_running_loop()
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    others = loop.create_task(take_turns())
    receipts = await client.abort(iter(ids), reason="tenant deleted")
    others.cancel()
    assert [receipt.task_id for receipt in receipts] == ids
    assert {receipt.answer for receipt in receipts} == {"requested"}
    assert await database.fetchval(REQUESTS) == len(ids)
    # Between any two of a hundred statements, and of as many pieces of the list.
    assert turns > 200


@pytest.mark.parametrize("nothing", [[], (), set(), iter(())])
async def test_nothing_to_abort_is_no_error(client: AbortClient, nothing: Any) -> None:
    """An empty list has an empty list of receipts."""
    assert await client.abort(nothing) == []
    assert await client.abort(GroupResult("empty", [])) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (7, "named by its id or its result, not 7"),
        (None, "not None"),
        (b"id", "not b'id'"),
        ({"task": "step"}, "not {'task': 'step'}"),
        (["id", 7], "not 7"),
        (["id", None], "None"),
        (["id", ["nested"]], "nested"),
        (["id", ""], "not empty"),
        (["id", "0" * 156], "at most 155 characters"),
        (["id", "a\0b"], "NUL"),
        ([AsyncResult("0" * 156, app=Celery(set_as_current=False))], "at most 155"),
    ],
)
async def test_what_is_no_task_is_refused_before_anything_is_requested(
    client: AbortClient, database: Database, wrong: Any, message: str
) -> None:
    """One wrong item, and no statement is sent for those before it."""
    with pytest.raises(InvalidRequest, match=message):
        await client.abort(wrong)
    if isinstance(wrong, list):
        many = [*new_ids(2_500), *wrong]
        with pytest.raises(InvalidRequest, match=message):
            await client.abort(iter(many))
    assert await database.fetchval(REQUESTS) == 0


async def test_a_signature_is_no_result(
    client: AbortClient, database: Database, step: Callable[..., Any]
) -> None:
    """Its keys are strings, which must not pass for ids."""
    target: Any = step(1)
    with pytest.raises(InvalidRequest, match="named by its id or its result"):
        await client.abort(target)
    assert await database.fetchval(REQUESTS) == 0


async def test_eager_results_are_refused(
    client: AbortClient, database: Database
) -> None:
    """A task that ran in this process cannot be asked: an error, no silence."""
    eager: EagerResult[int] = EagerResult("id", 1, states.SUCCESS)
    for target in (eager, ["other", eager], GroupResult("group", [eager])):
        with pytest.raises(AioabortError, match="task_always_eager"):
            await client.abort(target)
    assert await database.fetchval(REQUESTS) == 0


async def test_ids_that_were_never_published(
    client: AbortClient, database: Database
) -> None:
    """Such an id looks like a queued task's: the request is stored and stays pending."""
    receipts = await client.abort(["no", "such", "task"])
    assert [receipt.answer for receipt in receipts] == ["requested"] * 3
    assert await database.fetchval(REQUESTS) == 3


async def test_a_later_grace_hastens_many(client: AbortClient) -> None:
    """A grace applies to those that were asked before, too, and is never prolonged."""
    urgent, calm, new = new_ids(3)
    await client.abort(urgent, grace=1)
    await client.abort(calm)
    receipts = await client.abort([urgent, calm, new], grace=60)
    assert [receipt.answer for receipt in receipts] == [
        "requested_before",
        "requested_before",
        "requested",
    ]
    seconds = [
        (receipt.request.kill_at - datetime.now(UTC)).total_seconds()
        for receipt in receipts
        if receipt.request is not None and receipt.request.kill_at is not None
    ]
    assert seconds == pytest.approx([1, 60, 60], abs=30)
    assert seconds[0] < 10


async def test_all_of_a_chain_is_aborted(
    app: Celery, client: AbortClient, step: Callable[..., Any]
) -> None:
    """The last link's receipt is returned; those of the links before it are in it."""
    result = await client.send(chain(step(1), step(2), step(3)))
    first, second = result.parent.parent, result.parent  # type: ignore[union-attr]
    await end(app, first.id, 1, states.SUCCESS)
    receipt = await result.abort(reason="why")
    assert bare(receipt) == (result.id, "requested")
    assert [bare(each) for each in receipt.before] == [
        (first.id, "finished"),
        (second.id, "requested"),
    ]


async def test_all_of_a_chord_is_aborted(
    app: Celery, client: AbortClient, step: Callable[..., Any]
) -> None:
    """The header, chains in it, and each task of the body."""
    header = [chain(step(1), step(2)), step(3)]
    # Before 5.7, a chord does not ask the tasks of a chain for their app.
    result = await client.send(chord(header, chain(step(4), step(5)), app=app))
    receipt = await client.abort(result)
    assert receipt.is_requested
    assert len(receipt.before) == 4
    assert all(each.is_requested for each in receipt.before)


async def test_all_of_a_group_is_aborted(
    client: AbortClient, step: Callable[..., Any]
) -> None:
    """A receipt for each member; what comes before the group comes before them all."""
    result: Any = await client.send(
        chain(step(1), group(step(2), chain(step(3), step(4))))
    )
    first = result.parent
    receipts = await client.abort(result)
    assert [bare(receipt) for receipt in receipts] == [
        (member.id, "requested") for member in result
    ]
    assert [[each.task_id for each in receipt.before] for receipt in receipts] == [
        [first.id],
        [first.id, result[1].parent.id],
    ]


async def test_the_id_of_a_saved_group_is_refused(
    app: Celery, client: AbortClient, database: Database
) -> None:
    """It is no task's id: no request is stored, and the error says how to abort."""
    member, other, group_id = new_ids(3)
    group = GroupResult(group_id, [AsyncResult(member, app=app)], app=app)
    await to_thread.run_sync(group.save)

    for target in (group_id, [other, group_id], client.result(group_id)):
        with pytest.raises(InvalidRequest, match=f"GroupResult.restore.'{group_id}'"):
            await client.abort(target)
    assert await database.fetchval(REQUESTS) == 0

    restored = await to_thread.run_sync(lambda: GroupResult.restore(group_id, app=app))
    [receipt] = await client.abort(restored)
    assert bare(receipt) == (member, "requested")


async def test_groups_that_may_not_be_read_are_no_trouble(
    dsn: str, make_app: MakeApp, stranger: Stranger, database: Database
) -> None:
    """A role may lack the privilege to read groups: any id then counts as a task's."""
    for table in ("celery_taskmeta", "aioabort_request", "task_id_sequence"):
        await database.execute(f"GRANT ALL ON {table} TO {stranger.role}")
    await database.execute("CREATE SCHEMA hidden")
    for schemas in ({"group": "hidden"}, {}):
        app = make_app(
            dsn, aioabort_dsn=stranger.dsn(dsn), database_table_schemas=schemas
        )
        async with AbortClient(app) as client:
            assert (await client.abort(new_ids(1)[0])).answer == "requested"


@pytest.mark.parametrize("way", ["saved", "tuple"])
async def test_results_that_celery_restores_are_aborted_whole(
    app: Celery,
    client: AbortClient,
    step: Callable[..., Any],
    database: Database,
    way: str,
) -> None:
    """Celery hands back plain results with their parents; that is all that is needed."""
    sent = await client.send(group(chain(step(1), step(2)), step(3)))

    def restored() -> Any:
        if way == "saved":
            sent.save()
            return GroupResult.restore(sent.id, app=app)
        return result_from_tuple(sent.as_tuple(), app)

    result = await to_thread.run_sync(restored)
    # Before 5.7, Celery saves a group as a pickle, which keeps its classes.
    assert way == "saved" or not isinstance(result[0], AbortableAsyncResult)
    receipts = await client.abort(result)
    assert [bare(receipt) for receipt in receipts] == [
        (member.id, "requested") for member in sent
    ]
    assert await database.fetchval(REQUESTS) == 3


async def test_a_chain_longer_than_the_stack_is_high(
    app: Celery, client: AbortClient
) -> None:
    """Its results are walked, not recursed into."""
    result: AsyncResult[Any] | None = None
    for task_id in new_ids(3_000):
        result = AsyncResult(task_id, app=app, parent=result)
    assert result is not None
    receipt = await client.abort(result)
    assert len(receipt.before) == 2_999
    assert all(each.is_requested for each in receipt.before)


async def test_a_receipt_is_a_plain_fact(client: AbortClient) -> None:
    """It is frozen, can be compared and hashed, and pickled."""
    [task_id] = new_ids(1)
    receipt = await client.abort(task_id, reason="why")
    with pytest.raises(FrozenInstanceError):
        receipt.answer = "finished"  # type: ignore[misc]
    for other in (pickle.loads(pickle.dumps(receipt)), copy(receipt)):
        assert other == receipt
        assert hash(other) == hash(receipt)
        assert "client" not in repr(receipt)
        with pytest.raises(ClientClosed, match=f"receipt of task '{task_id}'"):
            await other.seen()


async def test_aborts_by_name_worker_queue_and_age(
    app: Celery, client: AbortClient, database: Database
) -> None:
    """Found are the unfinished tasks that meet every criterion."""
    app.conf.result_extended = True
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    rows = [
        ("old", "PROGRESS", "index", "a@host", "slow", now - 2 * hour),
        ("retried", "RETRY", "index", "b@host", "fast", now - 2 * hour),
        ("other", "STARTED", "resize", "a@host", "fast", now - 2 * hour),
        ("done", "SUCCESS", "index", "a@host", "fast", now - 2 * hour),
        ("failed", "FAILURE", "index", "a@host", "fast", now - 2 * hour),
        ("young", "STARTED", "index", "a@host", "fast", now),
    ]
    for number, row in enumerate(rows, 1_000):
        await database.execute(
            "INSERT INTO celery_taskmeta"
            "(id, task_id, status, name, worker, queue, date_done)"
            "VALUES ($1, $2, $3, $4, $5, $6, $7::timestamptz)",
            number,
            *row,
        )

    async def found(**criteria: Any) -> list[str]:
        receipts = await client.abort_where(**criteria, reason="cleanup")
        return [receipt.task_id for receipt in receipts]

    assert await found(task="index") == ["old", "retried", "young"]
    assert await found(task="index", before=now - hour) == ["old", "retried"]
    assert await found(worker="a@host", queue="fast") == ["other", "young"]
    assert await found(before=now - 3 * hour) == []
    assert await found(task="unknown") == []

    @app.task(base=AbortableTask, shared=False, name="index")
    def index() -> None:
        """Nothing."""

    assert await found(task=index, worker="b@host") == ["retried"]
    [receipt] = await client.abort_where(task="resize")
    assert bare(receipt) == ("other", "requested_before")
    assert receipt.request is not None
    assert receipt.request.reason == "cleanup"


@pytest.mark.parametrize("states", [["STARTED"], ["STARTED", "PROGRESS", "PROGRESS"]])
async def test_a_start_of_which_celery_stores_no_moment(
    app: Celery, client: AbortClient, database: Database, states: list[str]
) -> None:
    """A task is found by its age, if one that began later had ended by then.

    slow: begins | short: begins, ends | the moment | young: begins
    """

    def store(task_id: str, *states: str) -> None:
        for state in states:
            app.backend.store_result(task_id, None, state)

    await to_thread.run_sync(store, "slow", *states)
    assert await client.abort_where(before=datetime.now(UTC)) == []
    await to_thread.run_sync(store, "short", "STARTED", "SUCCESS")
    moment = datetime.now(UTC)
    await to_thread.run_sync(store, "young", *states)

    [row] = await database.fetch(
        "SELECT date_done FROM celery_taskmeta WHERE task_id = 'slow'"
    )
    assert row["date_done"] is None
    receipts = await client.abort_where(before=moment)
    assert [receipt.task_id for receipt in receipts] == ["slow"]


async def test_a_task_without_a_result_that_has_ended_is_not_found(
    client: AbortClient, store: RequestStore
) -> None:
    """Its row says ABORTED for ever; that its request is settled says that it ended."""
    requests = await store.request_aborts(["settled", "pending"])
    await store.record_outcomes([requests["settled"]], ["returned"], [0.0])
    future = datetime.now(UTC) + timedelta(hours=1)
    receipts = await client.abort_where(before=future)
    assert [receipt.task_id for receipt in receipts] == ["pending"]


async def test_many_are_found_in_pieces(
    app: Celery, client: AbortClient, database: Database
) -> None:
    """Each is found once, though each piece changes the table that is searched."""
    app.conf.result_extended = True
    await database.execute(
        "INSERT INTO celery_taskmeta (id, task_id, status, name)"
        "SELECT n, 'task ' || n, 'STARTED', 'index' FROM generate_series(1, 2500) AS n"
    )
    receipts = await client.abort_where(task="index")
    assert len({receipt.task_id for receipt in receipts}) == len(receipts) == 2_500
    assert {receipt.answer for receipt in receipts} == {"requested"}


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        ({}, "Without a criterion.*task, worker, queue, before"),
        ({"task": None, "before": None}, "Without a criterion"),
        ({"task": 7}, "task is a string"),
        ({"queue": "a\0"}, "NUL"),
        ({"before": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"before": 3_600}, "datetime with a time zone, not 3600"),
        ({"before": datetime.now(UTC), "grace": -1}, "grace"),
    ],
)
async def test_criteria_that_make_no_sense_are_refused(
    client: AbortClient, criteria: Any, message: str
) -> None:
    """Above all, no criterion at all: that would abort everything."""
    with pytest.raises(InvalidRequest, match=message):
        await client.abort_where(**criteria)


async def test_without_extended_results_the_error_says_so(
    app: Celery, client: AbortClient, database: Database
) -> None:
    """Nothing would be found, so the setting of Celery's is named instead."""
    with pytest.raises(ImproperlyConfigured, match="set result_extended"):
        await client.abort_where(task="index")
    assert await client.abort_where(before=datetime.now(UTC)) == []
    app.conf.result_extended = True
    await database.execute("ALTER TABLE celery_taskmeta DROP COLUMN name")
    with pytest.raises(StoreError, match=r"without result_extended.*name"):
        await client.abort_where(task="index", worker="a@host")


async def test_results_elsewhere_cannot_be_searched(dsn: str) -> None:
    """Without Celery's table in PostgreSQL, there is nothing to find tasks by."""
    app = Celery("t", broker="memory://", backend="cache+memory://")
    app.conf.update(aioabort_dsn=dsn, result_backend_thread_safe=True)
    async with AbortClient(app) as client:
        for criteria in ({"before": datetime.now(UTC)}, {"task": "index"}):
            with pytest.raises(ResultsElsewhere, match="results elsewhere"):
                await client.abort_where(**criteria)


async def test_an_abort_is_two_round_trips_at_most(
    network: Network, make_app: MakeApp, app: Celery
) -> None:
    """One for the request, one beside it for the workers; as few if it was too late."""
    async with AbortClient(make_app(network.dsn, aioabort_poll_interval=3_600)) as it:
        again, done = new_ids(2)
        await end(app, done, 1, states.SUCCESS)

        async def round_trips(ids: list[str]) -> int:
            before = network.requests
            for task_id in ids:
                await it.abort(task_id, reason="why", requested_by="alice")
            await it._connections.notifier.drain(it._connections.store)
            return network.requests - before

        # Statements are prepared once a connection.
        for _ in range(3):
            await asyncio.gather(*(round_trips([each]) for each in new_ids(10)))
            await round_trips([*new_ids(10), again, done])
        # The listener has its heartbeat.
        at_most = 2 * 50 + 5
        assert await round_trips(new_ids(50)) <= at_most
        assert await round_trips([again] * 50) <= at_most
        assert await round_trips([done] * 50) <= at_most


async def test_workers_are_told_of_many_at_once(
    client: AbortClient, store: RequestStore, database: Database
) -> None:
    """Each request is told of, in far fewer notifications than there are requests."""
    told: list[str] = []
    notifications: list[Any] = []

    def hear(_connection: Any, _pid: int, _channel: str, payload: Any) -> None:
        notifications.append(payload)
        told.extend(decode_notification(payload) or [])

    await database.add_listener(store.request_channel, hear)
    ids = new_ids(500)
    await asyncio.gather(*map(client.abort, ids))
    await until(lambda: len(told) >= len(ids))
    assert sorted(told) == sorted(ids)
    assert len(notifications) < 100


async def test_closing_tells_workers_first(
    app: Celery, store: RequestStore, database: Database
) -> None:
    """A client that is closed right after the request leaves no worker to its poll."""
    told: asyncio.Queue[str] = asyncio.Queue()

    def hear(_connection: Any, _pid: int, _channel: str, payload: Any) -> None:
        told.put_nowait(payload)

    await database.add_listener(store.request_channel, hear)
    for task_id in new_ids(5):
        async with AbortClient(app) as client:
            await client.abort(task_id)
        with fail_after(5):
            assert decode_notification(await told.get()) == [task_id]
