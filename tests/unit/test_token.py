"""What a task, its helpers and its threads can do with a token."""

import logging
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from aioabort import (
    AbortableTask,
    AbortToken,
    InvalidRequest,
    TaskAborted,
    current_token,
)
from aioabort.worker.live_token import LiveToken
from aioabort.worker.token import OUTSIDE, current, expose_to_threads
from tests.support.runs import PENDING
from tests.support.waiting import BOUND

REQUEST = replace(PENDING, requested_by="ann")


@pytest.fixture
def token() -> LiveToken:
    """A token that is not aborted."""
    return LiveToken("id")


class Bell:
    """A callback that a test can wait for and delay."""

    def __init__(self) -> None:
        self.rang = threading.Event()
        self.may_end = threading.Event()
        self.threads: list[int] = []

    def __call__(self) -> None:
        """Ring each time that the bell is called."""
        self.threads.append(threading.get_ident())
        self.rang.set()
        assert self.may_end.wait(BOUND)


@pytest.fixture
def bell() -> Bell:
    """A callback that ends at once."""
    bell = Bell()
    bell.may_end.set()
    return bell


@contextmanager
def in_thread(function: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run *function* in another thread, which ends with the block."""
    thread = threading.Thread(target=function)
    thread.start()
    yield thread
    thread.join(BOUND)
    assert not thread.is_alive()


@contextmanager
def running_task(token: AbortToken) -> Iterator[None]:
    """Make *token* the one of the task that this thread is in."""
    reset = current.set(token)
    try:
        yield
    finally:
        current.reset(reset)


def test_an_abort_is_seen(token: LiveToken) -> None:
    """A check is False before the abort, and True from then on."""
    assert not token.is_aborted()
    token.raise_if_aborted()

    token.abort(REQUEST)

    assert token.aborted
    assert token.is_aborted()
    assert token.is_aborted()
    assert token.request is REQUEST


def test_the_exception_carries_the_request(token: LiveToken) -> None:
    """``raise_if_aborted()`` says which task, why and by whom."""
    token.abort(REQUEST)
    with pytest.raises(TaskAborted) as raised:
        token.raise_if_aborted()
    assert raised.value.args == ("why", "ann", "id")


def test_the_first_request_stays(token: LiveToken) -> None:
    """A second abort changes nothing."""
    token.abort(REQUEST)
    token.abort(replace(REQUEST, reason="another"))
    assert token.request is REQUEST


@pytest.mark.parametrize("aborted_before", [True, False])
def test_wait_ends_with_the_abort(token: LiveToken, aborted_before: bool) -> None:
    """A sleep without a limit ends when the abort comes, or at once after it."""
    if aborted_before:
        token.abort(REQUEST)
        assert token.wait()
        return
    with in_thread(lambda: token.abort(REQUEST)):
        assert token.wait(BOUND)


def test_wait_ends_with_its_time(token: LiveToken) -> None:
    """Without an abort, ``wait()`` returns False after its timeout, even after 0 s."""
    assert not token.wait(0.01)
    assert not token.wait(0)


@pytest.mark.parametrize("timeout", [math.nan, True, "1"])
def test_wait_takes_numbers_only(token: LiveToken, timeout: Any) -> None:
    """A timeout that is no number is refused, in a task and outside of one."""
    with pytest.raises(InvalidRequest, match="timeout is a number of seconds"):
        token.wait(timeout)
    with pytest.raises(InvalidRequest, match="timeout is a number of seconds"):
        current_token().wait(timeout)


def test_an_endless_timeout_ends_with_the_abort(token: LiveToken) -> None:
    """An infinite timeout is the same as none."""
    with in_thread(lambda: token.abort(REQUEST)):
        assert token.wait(math.inf)


def test_every_waiter_wakes(token: LiveToken) -> None:
    """One abort wakes all threads that wait for the token."""
    woken: list[bool] = []
    waiters = [
        threading.Thread(target=lambda: woken.append(token.wait(BOUND)))
        for _ in range(3)
    ]
    for waiter in waiters:
        waiter.start()
    token.abort(REQUEST)
    for waiter in waiters:
        waiter.join(BOUND)
    assert woken == [True] * 3


def test_callback_runs_once_in_another_thread(token: LiveToken, bell: Bell) -> None:
    """The abort starts the callback, and does not wait for it."""
    with token.on_abort(bell):
        assert not bell.rang.is_set()
        token.abort(REQUEST)
        token.abort(REQUEST)
        assert bell.rang.wait(BOUND)
    assert len(bell.threads) == 1
    assert bell.threads[0] != threading.get_ident()
    assert token.seen


def test_callback_of_an_abort_before(token: LiveToken, bell: Bell) -> None:
    """After the abort, a callback runs at once and in this thread."""
    token.abort(REQUEST)
    with token.on_abort(bell):
        assert bell.threads == [threading.get_ident()]
    assert len(bell.threads) == 1
    assert token.seen


def test_no_callback_after_the_block(token: LiveToken, bell: Bell) -> None:
    """An abort that comes later starts no thread."""
    with token.on_abort(bell):
        pass
    threads = threading.active_count()
    token.abort(REQUEST)
    assert threading.active_count() == threads
    assert not bell.rang.is_set()
    assert not token.seen


def test_the_block_waits_for_its_callback(token: LiveToken, bell: Bell) -> None:
    """The block ends after the callback that it has started."""
    bell.may_end.clear()
    left = threading.Event()

    def body() -> None:
        with token.on_abort(bell):
            assert bell.rang.wait(BOUND)
        left.set()

    with in_thread(body):
        token.abort(REQUEST)
        assert bell.rang.wait(BOUND)
        assert not left.wait(0.05)
        bell.may_end.set()
    assert left.is_set()


def test_callback_that_fails(
    token: LiveToken, bell: Bell, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback's error is logged; the others run, and the abort goes on."""

    def fail() -> None:
        raise ValueError("broken")

    with token.on_abort(fail), token.on_abort(bell):
        token.abort(REQUEST)
        assert bell.rang.wait(BOUND)
    assert token.is_aborted()
    with token.on_abort(fail):
        pass

    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2
    for record in errors:
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], ValueError)


def test_callback_that_blocks_delays_no_other(token: LiveToken, bell: Bell) -> None:
    """Neither the abort nor another callback waits for a callback that blocks."""
    slow = Bell()
    with token.on_abort(slow), token.on_abort(bell):
        token.abort(REQUEST)
        assert slow.rang.wait(BOUND)
        assert bell.rang.wait(BOUND)
        slow.may_end.set()


def test_callback_that_uses_the_token(token: LiveToken) -> None:
    """A callback may use the token that calls it."""
    answers: list[bool] = []
    asked = threading.Event()

    def ask() -> None:
        with token.on_abort(asked.set), token.shield():
            answers.append(token.is_aborted())

    with token.on_abort(ask):
        token.abort(REQUEST)
        assert asked.wait(BOUND)
    assert answers == [True]


def test_shield_holds_the_abort_back(token: LiveToken, bell: Bell) -> None:
    """Checks, sleeps and callbacks notice the abort when the block ends."""
    with token.on_abort(bell):
        with token.shield():
            token.abort(REQUEST)
            assert not token.aborted
            assert not token.is_aborted()
            assert not token.wait(0.01)
            token.raise_if_aborted()
            assert not bell.rang.is_set()
        assert token.is_aborted()
        assert bell.rang.wait(BOUND)
    assert token.request is REQUEST


def test_a_sleep_elsewhere_waits_for_the_shield(token: LiveToken) -> None:
    """A shield is for all users of the token; its end wakes a thread that waits."""
    woken: list[bool] = []
    with in_thread(lambda: woken.append(token.wait(BOUND))), token.shield():
        token.abort(REQUEST)
        assert woken == []
    assert woken == [True]


def test_nested_shields(token: LiveToken) -> None:
    """The outermost one counts."""
    with token.shield():
        with token.shield():
            token.abort(REQUEST)
        assert not token.is_aborted()
    assert token.is_aborted()


def test_a_body_that_fails_in_its_shield(token: LiveToken) -> None:
    """The shield ends with its block, however that ends."""

    def fail() -> None:
        with token.shield():
            token.abort(REQUEST)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert token.is_aborted()


def test_shield_does_not_undo_an_abort(token: LiveToken) -> None:
    """A token that was aborted before the block is aborted in the block."""
    token.abort(REQUEST)
    with token.shield():
        assert token.is_aborted()
        with pytest.raises(TaskAborted):
            token.raise_if_aborted()


def test_what_stops_the_body_waits_for_the_shield(token: LiveToken) -> None:
    """An abort that came just before the shield takes its effect just after it."""
    stops: list[bool] = []
    token.stop_with(lambda: stops.append(token.may_stop()))
    with token.shield():
        # As if the abort had come before, and its effect now.
        assert not token.may_stop()
    assert stops == [True]
    with token.shield():
        pass
    assert stops == [True]


def test_until_aborted_takes_no_item_that_it_does_not_yield(token: LiveToken) -> None:
    """The items that were not processed are still there."""
    items = iter(range(5))
    processed: list[int] = []
    with running_task(token):
        for item in AbortableTask().until_aborted(items):
            processed.append(item)
            if item == 2:
                token.abort(REQUEST)
    assert processed == [0, 1, 2]
    assert list(items) == [3, 4]
    assert token.seen


def test_until_aborted_ends_with_the_items(token: LiveToken) -> None:
    """Without an abort it yields all items of any iterable."""
    with running_task(token):
        assert list(AbortableTask().until_aborted("abc")) == ["a", "b", "c"]


def test_the_task_has_the_methods_of_its_token(token: LiveToken) -> None:
    """The task and its token agree, in the body and in helper functions."""
    task = AbortableTask()
    with running_task(token):
        assert task.abort_token is token
        assert current_token() is token
        assert not task.is_aborted()
        task.raise_if_aborted()
        token.abort(REQUEST)
        assert task.is_aborted()
        with pytest.raises(TaskAborted, match="why"):
            task.raise_if_aborted()


def test_outside_of_a_task() -> None:
    """A body that is called as a plain function has a token that is never aborted."""
    task = AbortableTask()
    assert not task.is_aborted()
    task.raise_if_aborted()
    assert list(task.until_aborted([1, 2])) == [1, 2]
    token = current_token()
    assert not token.is_aborted()
    assert not token.wait(0)
    with token.shield(), token.on_abort(pytest.fail):
        token.raise_if_aborted()


def test_tokens_outside_of_a_task_are_not_shared() -> None:
    """A caller that sets the flag of its token does not set those of other callers."""
    current_token().aborted = True
    assert not current_token().is_aborted()


def test_token_in_the_documentation() -> None:
    """The methods that change a token are not part of the public class."""
    public = {name for name in vars(AbortToken) if not name.startswith("_")}
    assert public == {
        "aborted",
        "is_aborted",
        "on_abort",
        "raise_if_aborted",
        "request",
        "shield",
        "task_id",
        "wait",
    }


def test_token_in_another_thread(token: LiveToken) -> None:
    """A token that was passed to a thread notices the abort there."""
    seen: list[bool] = []
    with running_task(token):
        handed = AbortableTask().abort_token
    with in_thread(lambda: seen.append(handed.wait(BOUND))):
        token.abort(REQUEST)
    assert seen == [True]


@pytest.fixture
def exposed(token: LiveToken) -> Iterator[LiveToken]:
    """The token of a task that runs in the main thread, one at a time."""
    expose_to_threads(token)
    yield token
    expose_to_threads(OUTSIDE)


def found_in_thread() -> list[AbortToken]:
    """Return what a thread finds that is started here and now."""
    found: list[AbortToken] = []
    with in_thread(lambda: found.append(current_token())):
        pass
    return found


def test_thread_that_the_task_starts(exposed: LiveToken) -> None:
    """It has no context, but finds the task; so do the threads that it starts itself."""
    found: list[AbortToken] = []
    assert found_in_thread() == [exposed]
    with in_thread(lambda: found.extend(found_in_thread())):
        pass
    with ThreadPoolExecutor(1) as pool:
        found.append(pool.submit(current_token).result())
        exposed.abort(REQUEST)
        assert pool.submit(AbortableTask().is_aborted).result()
    assert found == [exposed, exposed]


def test_thread_that_was_there_before_the_task(token: LiveToken) -> None:
    """It does not belong to the task, and its checks stay False.

    thread: starts | task: begins, aborted | thread: checks
    """
    with ThreadPoolExecutor(1) as pool:
        pool.submit(current_token).result()
        expose_to_threads(token)
        token.abort(REQUEST)
        try:
            assert not pool.submit(AbortableTask().is_aborted).result()
            assert pool.submit(current_token).result() is not token
        finally:
            expose_to_threads(OUTSIDE)


def test_thread_that_outlives_its_task(token: LiveToken) -> None:
    """It finds neither its task any more nor the next one.

    task: starts a thread, ends | next task: begins, aborted | thread: checks
    """
    expose_to_threads(token)
    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(current_token).result() is token
            expose_to_threads(OUTSIDE)
            assert pool.submit(current_token).result() is not token
            following = LiveToken("next")
            expose_to_threads(following)
            following.abort(REQUEST)
            assert not pool.submit(current_token).result().is_aborted()
    finally:
        expose_to_threads(OUTSIDE)


def test_task_in_a_thread_of_a_pool(token: LiveToken) -> None:
    """Other tasks run at the same time, so its threads find no task."""

    def body() -> None:
        expose_to_threads(token)
        found.extend(found_in_thread())

    found: list[AbortToken] = []
    with in_thread(body):
        pass
    assert len(found) == 1
    assert found[0] is not token


def test_unknown_abort_mode(app: Celery) -> None:
    """The definition of the task fails, with the name of the task."""
    with pytest.raises(ImproperlyConfigured, match=r"convert.*abort_mode.*'hard'"):

        @app.task(base=AbortableTask, abort_mode="hard", lazy=False, shared=False)
        def convert() -> None: ...
