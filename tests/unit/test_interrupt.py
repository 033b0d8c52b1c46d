"""``abort_mode="raise"``: TaskAborted comes within the body, once, or not at all."""

import gc
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from queue import SimpleQueue

import pytest

from aioabort import AbortRequest, AbortToken, TaskAborted
from aioabort.worker.interrupt import interruption

REQUEST = AbortRequest(
    task_id="id", requested_at=datetime(2026, 1, 1, tzinfo=UTC), reason="why"
)

#: Enough to meet every moment of the end of a body, in a second or two.
ROUNDS = 4_000

BOUND = 10.0


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """No garbage collection: Python drops what is raised in its callbacks."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that take turns a thousand times as often as usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


def run_here(function: Callable[[], object]) -> object:
    """Call *function* in the main thread, which a signal interrupts."""
    return function()


def run_in_thread(function: Callable[[], object]) -> object:
    """Call *function* in a thread as the threads pool has them."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


in_both = pytest.mark.parametrize("run", [run_here, run_in_thread])


class Aborter:
    """Aborts each token that it is handed, a random moment later."""

    def __init__(self) -> None:
        # Not an Event: its lock is Python code's, and a body that hands over its
        # token would be interrupted while it holds it.
        self._tokens: SimpleQueue[AbortToken | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def hand(self, token: AbortToken) -> None:
        """Have *token* aborted soon."""
        self._tokens.put(token)

    def stop(self) -> None:
        """End the thread."""
        self._tokens.put(None)
        self._thread.join(BOUND)

    def _run(self) -> None:
        while (token := self._tokens.get()) is not None:
            spin(random.randrange(400))
            token.abort(REQUEST)


@pytest.fixture
def aborter() -> Iterator[Aborter]:
    """A thread that aborts tokens."""
    aborter = Aborter()
    yield aborter
    aborter.stop()


def spin(times: int) -> int:
    """Compute, as a body does that never looks."""
    total = 0
    for number in range(times):
        total += number
    return total


def spin_until(condition: Callable[[], bool]) -> None:
    """Compute until *condition* holds."""
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline


@in_both
@pytest.mark.usefixtures("hasty_threads")
def test_aborts_round_the_end_of_short_bodies(
    run: Callable[[Callable[[], object]], object], aborter: Aborter
) -> None:
    """No exception ever reaches what comes after the body."""
    ends = {"aborted": 0, "returned": 0, "after": 0}
    rounds = 0

    def is_enough() -> bool:
        """Whether both ends happen: on a busy machine, the aborter is late for most."""
        both = min(ends["aborted"], ends["returned"]) > ROUNDS / 100
        return (rounds >= ROUNDS and both) or rounds >= 50 * ROUNDS

    def one() -> None:
        token = AbortToken("id")
        try:
            aborter.hand(token)
            with interruption(token):
                spin(random.randrange(1, 600))
            end = "returned"
        except TaskAborted:
            end = "aborted"
        ends[end] += 1

    def many() -> None:
        nonlocal rounds
        while not is_enough():
            rounds += 1
            try:
                one()
                # Here, Celery's own code and the next task would be.
                spin(100)
            except TaskAborted:
                ends["after"] += 1

    run(many)

    assert ends["after"] == 0
    # The moments were well chosen: both ends happen.
    assert ends["aborted"] > ROUNDS / 100
    assert ends["returned"] > ROUNDS / 100


@in_both
def test_body_that_looks_as_well(run: Callable[[Callable[[], object]], object]) -> None:
    """A body that stops by itself is not interrupted again while it cleans up.

    agent: aborted | body: raise_if_aborted, finally | agent: callbacks, interruption
    """
    torn: list[int] = []

    def one() -> None:
        token = AbortToken("id")
        is_over = threading.Event()

        def abort() -> None:
            token.abort(REQUEST)
            is_over.set()

        with ExitStack() as callbacks:
            for _ in range(20):
                callbacks.enter_context(token.on_abort(lambda: None))
            is_clean = False
            try:
                with interruption(token):
                    try:
                        threading.Thread(target=abort).start()
                        spin_until(lambda: token.raise_if_aborted() is not None)
                    finally:
                        spin_until(is_over.is_set)
                        spin(1_000)
                        is_clean = True
            except TaskAborted:
                pass
        if not is_clean:
            torn.append(1)

    def many() -> None:
        for _ in range(15):
            one()

    run(many)

    assert torn == []


@in_both
def test_never_twice(run: Callable[[Callable[[], object]], object]) -> None:
    """A body that catches the abort goes on undisturbed."""
    caught: list[TaskAborted] = []

    def body() -> None:
        token = AbortToken("id")
        with interruption(token):
            try:
                token.abort(REQUEST)
                spin_until(lambda: False)
            except TaskAborted as error:
                caught.append(error)
            token.abort(REQUEST)
            with token.shield():
                spin(1000)
            spin(1000)

    run(body)

    assert [error.args for error in caught] == [("why", None, "id")]


class LateToken(AbortToken):
    """Remembers what the agent may be about to call when the body ends."""

    late: Callable[[], None]

    def stop_with(self, stop: Callable[[], None] | None) -> None:
        """Remember *stop* for longer than its time."""
        if stop is not None:
            self.late = stop
        super().stop_with(stop)


@in_both
def test_interruption_that_comes_late(
    run: Callable[[Callable[[], object]], object],
) -> None:
    """After the body, what is on its way does nothing.

    agent: has read what to call | body: ends | agent: calls it
    """

    def body() -> str:
        token = LateToken("id")
        with interruption(token):
            spin(10)
        token.abort(REQUEST)
        token.late()
        spin(1000)
        return "not disturbed"

    assert run(body) == "not disturbed"


@in_both
def test_never_in_a_shield(run: Callable[[Callable[[], object]], object]) -> None:
    """An abort that comes in a shield is raised at its end."""
    reached: list[str] = []

    def body() -> None:
        token = AbortToken("id")
        with interruption(token):
            with token.shield():
                token.abort(REQUEST)
                spin(1000)
                reached.append("end of the shield")
            spin_until(lambda: False)
            reached.append("end of the body")

    with pytest.raises(TaskAborted, match="why"):
        run(body)
    assert reached == ["end of the shield"]


@in_both
@pytest.mark.usefixtures("hasty_threads")
def test_aborts_round_a_shield(
    run: Callable[[Callable[[], object]], object], aborter: Aborter
) -> None:
    """Whenever the abort comes, a shield's block runs to its end or not at all."""
    torn: list[int] = []

    def one() -> None:
        token = AbortToken("id")
        begun = ended = False
        try:
            with interruption(token):
                aborter.hand(token)
                spin(random.randrange(1, 100))
                with token.shield():
                    begun = True
                    spin(random.randrange(1, 200))
                    ended = True
                spin(random.randrange(1, 100))
        except TaskAborted:
            pass
        if begun != ended:
            torn.append(1)

    def many() -> None:
        for _ in range(ROUNDS // 2):
            one()

    run(many)

    assert torn == []


@in_both
def test_aborted_before_the_body(run: Callable[[Callable[[], object]], object]) -> None:
    """An abort that is there already is raised as soon as that is allowed."""

    def body() -> None:
        token = AbortToken("id")
        token.abort(REQUEST)
        with interruption(token):
            spin_until(lambda: False)

    with pytest.raises(TaskAborted, match="why"):
        run(body)


def test_signal_interrupts_a_blocking_call() -> None:
    """In the main thread, not even a sleep holds the abort up."""
    token = AbortToken("id")
    start = time.monotonic()
    timer = threading.Timer(0.05, token.abort, [REQUEST])
    timer.start()
    with pytest.raises(TaskAborted), interruption(token):
        time.sleep(BOUND)
    timer.join()
    assert time.monotonic() - start < BOUND / 2
