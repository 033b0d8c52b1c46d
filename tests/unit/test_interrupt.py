"""``abort_mode="raise"``: the abort is raised in the body while it goes on."""

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from queue import SimpleQueue

import pytest

from aioabort import TaskAborted
from aioabort.exceptions import AbortInterrupt
from aioabort.timing import Timing
from aioabort.worker.execution import interrupt
from aioabort.worker.execution.interrupt import Interruption, call_interruptibly
from aioabort.worker.execution.signal_handler import SignalHandler
from aioabort.worker.live_token import LiveToken
from tests.support.runs import PENDING
from tests.support.waiting import BOUND

#: Enough to hit every moment of the end of a body, in a second or two.
ROUNDS = 4_000

TIMING = Timing(interrupt_pause=0.05, signal_timeout=0.01)


def interrupted(
    token: LiveToken, timing: Timing = TIMING
) -> Callable[[Callable[[], object]], object]:
    """Decorate a body that is called at once, and that the abort of *token* interrupts."""
    return partial(call_interruptibly, token, signal.SIGURG, timing)


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """No garbage collection: Python drops an exception that is raised in its callbacks."""
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
    """Aborts each token that it gets, a random moment later."""

    def __init__(self) -> None:
        # Not an Event: its lock is Python code, and a body that puts its token here
        # would be interrupted while it holds the lock.
        self._tokens: SimpleQueue[LiveToken | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, token: LiveToken) -> None:
        """Have *token* aborted soon."""
        self._tokens.put(token)

    def stop(self) -> None:
        """End the thread."""
        self._tokens.put(None)
        self._thread.join(BOUND)

    def _run(self) -> None:
        while (token := self._tokens.get()) is not None:
            spin(random.randrange(400))
            token.abort(PENDING)


@pytest.fixture
def aborter() -> Iterator[Aborter]:
    """A thread that aborts tokens."""
    aborter = Aborter()
    yield aborter
    aborter.stop()


def spin(times: int) -> int:
    """Compute, as a body does that never checks."""
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
def test_aborts_near_the_end_of_short_bodies(
    run: Callable[[Callable[[], object]], object], aborter: Aborter
) -> None:
    """No exception is ever raised after the body."""
    ends = {"aborted": 0, "returned": 0, "after": 0}
    rounds = 0

    def is_enough() -> bool:
        """Whether both ends happen: on a busy machine, the aborter is late for most."""
        both = min(ends["aborted"], ends["returned"]) > ROUNDS / 100
        return (rounds >= ROUNDS and both) or rounds >= 50 * ROUNDS

    def one() -> None:
        token = LiveToken("id")
        try:
            aborter.put(token)

            @interrupted(token)
            def _() -> None:
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
                # In a worker, this is Celery's own code and the next task.
                spin(100)
            except TaskAborted:
                ends["after"] += 1

    run(many)

    assert ends["after"] == 0
    # The test covers both ends.
    assert ends["aborted"] > ROUNDS / 100
    assert ends["returned"] > ROUNDS / 100


@in_both
def test_body_that_checks_as_well(
    run: Callable[[Callable[[], object]], object],
) -> None:
    """A body that stops by itself is not interrupted again while it cleans up.

    agent: aborted | body: raise_if_aborted, finally | agent: callbacks, interruption
    """
    torn: list[int] = []

    def one() -> None:
        token = LiveToken("id")
        is_over = threading.Event()

        def abort() -> None:
            token.abort(PENDING)
            is_over.set()

        with ExitStack() as callbacks:
            for _ in range(20):
                callbacks.enter_context(token.on_abort(lambda: None))
            is_clean = False
            try:

                @interrupted(token)
                def _() -> None:
                    nonlocal is_clean
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


def abort_and_spin(token: LiveToken) -> None:
    """Abort *token*, which interrupts this function at once or soon."""
    token.abort(PENDING)
    spin_until(lambda: False)


def swallow(call: Callable[[], object]) -> str:
    """Be a library: treat any error of *call* as its own business."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - as people write it
        return type(error).__name__
    return "returned"


class SeenToken(LiveToken):
    """Tells when the body could know of the abort."""

    def _on_seen(self) -> None:
        SEEN.append(self.task_id)


SEEN: list[str] = []


@pytest.fixture(autouse=True)
def seen() -> Iterator[list[str]]:
    """The ids of the tokens that are seen."""
    SEEN.clear()
    yield SEEN
    SEEN.clear()


@in_both
def test_again_if_a_library_swallows_it(
    run: Callable[[Callable[[], object]], object], seen: list[str]
) -> None:
    """The abort is raised again, as no Exception; until then, the body knows nothing.

    agent: aborted | library: swallows it | body: goes on | timer: raises it again
    """
    swallowed: list[str] = []

    def body() -> None:
        token = SeenToken("id")

        @interrupted(token)
        def _() -> None:
            swallowed.append(swallow(lambda: abort_and_spin(token)))
            assert seen == []
            swallowed.append(swallow(lambda: spin_until(lambda: False)))

    with pytest.raises(AbortInterrupt, match="why"):
        run(body)
    assert swallowed == ["TaskAborted"]
    assert seen == ["id"]


@in_both
def test_unknown_to_a_body_that_returns(
    run: Callable[[Callable[[], object]], object], seen: list[str]
) -> None:
    """A body that ends soon after a library swallowed the abort has not seen it."""

    def body() -> None:
        token = SeenToken("id")

        @interrupted(token)
        def _() -> None:
            swallow(lambda: abort_and_spin(token))

    run(body)

    assert seen == []


@in_both
def test_again_if_the_body_catches_it(
    run: Callable[[Callable[[], object]], object], seen: list[str]
) -> None:
    """A body that catches it has seen it; it may go on for the time of a cleanup."""
    caught: list[float] = []
    arguments: list[tuple[object, ...]] = []
    timing = Timing(cleanup_timeout=0.2, interrupt_pause=0.01, signal_timeout=0.01)

    def body() -> None:
        token = SeenToken("id")

        @interrupted(token, timing)
        def _() -> None:
            try:
                abort_and_spin(token)
            except TaskAborted as error:
                arguments.append(error.args)
            caught.append(time.monotonic())
            spin_until(lambda: bool(seen))
            spin_until(lambda: False)

    with pytest.raises(AbortInterrupt, match="why"):
        run(body)
    assert time.monotonic() - caught[0] > 0.15
    assert arguments == [("why", None, "id")]


@in_both
@pytest.mark.parametrize("block", ["finally", "except", "with"])
def test_never_while_the_body_handles_it(
    run: Callable[[Callable[[], object]], object], seen: list[str], block: str
) -> None:
    """A block that cleans up because of the abort may take as long as it needs."""
    clean: list[str] = []
    timing = Timing(cleanup_timeout=0.02, interrupt_pause=0.01, signal_timeout=0.01)

    def clean_up() -> None:
        end = time.monotonic() + 0.3
        # Errors of the cleanup itself change nothing.
        swallow(lambda: int("none"))
        spin_until(lambda: time.monotonic() > end)
        clean.append(block)

    @contextmanager
    def cleaning() -> Iterator[None]:
        try:
            yield
        finally:
            clean_up()

    def body() -> None:
        token = SeenToken("id")

        @interrupted(token, timing)
        def _() -> None:
            if block == "with":
                with cleaning():
                    abort_and_spin(token)
            try:
                abort_and_spin(token)
            except TaskAborted:
                if block == "except":
                    clean_up()
                raise
            finally:
                if block == "finally":
                    clean_up()

    with pytest.raises(TaskAborted):
        run(body)
    assert clean == [block]
    assert seen == ["id"]


@in_both
def test_again_after_the_check_of_a_library(
    run: Callable[[Callable[[], object]], object],
) -> None:
    """A body whose library swallows what a check raises is interrupted later."""
    timing = Timing(cleanup_timeout=0.05)

    def body() -> None:
        token = LiveToken("id")
        token.abort(PENDING)
        swallow(token.raise_if_aborted)

        @interrupted(token, timing)
        def _() -> None:
            spin_until(lambda: False)

    with pytest.raises(AbortInterrupt, match="why"):
        run(body)


@in_both
def test_again_after_a_shield(run: Callable[[Callable[[], object]], object]) -> None:
    """It is not raised again in a shield, but after it."""
    reached: list[str] = []

    def body() -> None:
        token = LiveToken("id")

        @interrupted(token)
        def _() -> None:
            swallow(lambda: abort_and_spin(token))
            with token.shield():
                end = time.monotonic() + 0.2
                spin_until(lambda: time.monotonic() > end)
                reached.append("end of the shield")
            spin_until(lambda: False)

    with pytest.raises(AbortInterrupt):
        run(body)
    assert reached == ["end of the shield"]


def test_handler_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """If Python does not learn of the signal, the asynchronous exception is used.

    agent: sends the signal | body: computes, in a child that another thread forked |
    timer: finds that no handler has run
    """
    monkeypatch.setattr(interrupt, "SIGNALS_MAY_STAY_PENDING", True)
    monkeypatch.setattr(SignalHandler, "send", lambda _: None)
    token = LiveToken("id")

    token.abort(PENDING)

    with pytest.raises(TaskAborted, match="why"):
        interrupted(token)(lambda: spin_until(lambda: False))


def test_handler_that_runs_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception that replaces a late signal is not raised beside it.

    timer: sends the exception | body: handles the signal first | body: cleans up
    """
    monkeypatch.setattr(interrupt, "SIGNALS_MAY_STAY_PENDING", True)
    monkeypatch.setattr(SignalHandler, "send", lambda _: None)
    token = LiveToken("id")
    sent: list[type[BaseException] | None] = []
    monkeypatch.setattr(interrupt, "_raise_in", lambda _, error: sent.append(error))

    block = Interruption(token, signal.SIGURG, TIMING)
    with block:
        token.abort(PENDING)
        spin_until(lambda: bool(sent))
        with pytest.raises(TaskAborted):
            block.on_signal()
        spin(1000)

    # The second call takes the exception back.
    assert sent[1:] == [None]


FORKED = """
import os, threading, time
from datetime import UTC, datetime
from aioabort import AbortRequest, TaskAborted
from aioabort.timing import Timing
from aioabort.worker.execution.interrupt import call_interruptibly
from aioabort.worker.live_token import LiveToken

def spin():
    end = time.monotonic() + 20
    while time.monotonic() < end:
        pass

def run():
    token = LiveToken("id")
    request = AbortRequest(task_id="id", requested_at=datetime.now(UTC))
    threading.Timer(0.1, token.abort, [request]).start()
    try:
        call_interruptibly(token, 23, Timing(), spin)
    except TaskAborted:
        os._exit(3)
    os._exit(4)

def fork():
    if os.fork() == 0:
        run()

thread = threading.Thread(target=fork)
thread.start()
thread.join()
assert os.waitstatus_to_exitcode(os.wait()[1]) == 3
"""


def test_child_that_a_thread_has_forked() -> None:
    """A body that computes is interrupted there, too: Celery forks children like that.

    Closes: CPython 3.13 runs no signal handler in the child's main thread
    """
    program = [sys.executable, "-W", "ignore", "-c", FORKED]
    subprocess.run(program, check=True, timeout=2 * BOUND)


ENDING = """
import threading
from celery import signals
from datetime import UTC, datetime
from aioabort import AbortRequest, TaskAborted
from aioabort.timing import Timing
from aioabort.worker.execution.interrupt import call_interruptibly
from aioabort.worker.live_token import LiveToken

token = LiveToken("id")
token.abort(AbortRequest(task_id="id", requested_at=datetime.now(UTC)))
try:
    call_interruptibly(token, 23, Timing(), lambda: None)
except TaskAborted:
    print([thread.name for thread in threading.enumerate()])
signals.worker_process_shutdown.send(sender=None, pid=0, exitcode=0)
print([thread.name for thread in threading.enumerate()])
"""


def test_child_that_ends_has_no_thread_left() -> None:
    """A thread that is left would take the signals that the main thread blocks."""
    program = [sys.executable, "-c", ENDING]
    done = subprocess.run(
        program, check=True, timeout=BOUND, capture_output=True, text=True
    )

    assert done.stdout.splitlines() == [
        "['MainThread', 'aioabort-interrupt']",
        "['MainThread']",
    ]


FOREIGN = """
import ctypes, os, signal, threading, time
from datetime import UTC, datetime
calls = []
handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(calls.append)
ctypes.CDLL(None).signal(signal.SIGURG, handler)

from aioabort import AbortRequest, TaskAborted
from aioabort.timing import Timing
from aioabort.worker.execution.interrupt import call_interruptibly
from aioabort.worker.live_token import LiveToken

def sleep():
    for _ in range(1_000):
        time.sleep(0.01)

def abort(number):
    token = LiveToken("id")
    request = AbortRequest(task_id="id", requested_at=datetime.now(UTC))
    threading.Timer(0.1, token.abort, [request]).start()
    call_interruptibly(token, number, Timing(), sleep)

for number in (signal.SIGURG, signal.SIGUSR2):
    try:
        abort(number)
    except TaskAborted:
        print("aborted", signal.Signals(number).name)
os.kill(os.getpid(), signal.SIGURG)
os.kill(os.getpid(), signal.SIGUSR2)
print(calls == [signal.SIGURG])
"""


def test_handler_of_c_code() -> None:
    """A library that handles the signal in C keeps it; the body is interrupted anyway.

    Another signal is not left as one that ends the process.
    """
    program = [sys.executable, "-c", FOREIGN]
    done = subprocess.run(
        program, check=True, timeout=BOUND, capture_output=True, text=True
    )

    assert done.stdout.split("\n")[:3] == ["aborted SIGURG", "aborted SIGUSR2", "True"]
    assert "set aioabort_interrupt_signal to another signal" in done.stderr


def test_handler_of_other_python_code() -> None:
    """A signal that another program sent goes to the handler that was there before."""
    calls: list[int] = []
    before = signal.signal(signal.SIGWINCH, lambda number, _: calls.append(number))
    try:
        with Interruption(LiveToken("id"), signal.SIGWINCH, TIMING):
            os.kill(os.getpid(), signal.SIGWINCH)
            spin_until(lambda: bool(calls))
        os.kill(os.getpid(), signal.SIGWINCH)
        spin_until(lambda: len(calls) > 1)
    finally:
        signal.signal(signal.SIGWINCH, before)
    assert calls == [signal.SIGWINCH] * 2


class LateToken(LiveToken):
    """Keeps what the agent may be about to call when the body ends."""

    late: Callable[[], None]

    def stop_with(self, stop: Callable[[], None] | None) -> None:
        """Keep *stop* after its block, too."""
        if stop is not None:
            self.late = stop
        super().stop_with(stop)


@in_both
def test_interruption_that_comes_late(
    run: Callable[[Callable[[], object]], object],
) -> None:
    """An interruption that arrives after the body does nothing.

    agent: has read what to call | body: ends | agent: calls it
    """

    def body() -> str:
        token = LateToken("id")

        @interrupted(token)
        def _() -> None:
            spin(10)

        token.abort(PENDING)
        token.late()
        spin(1000)
        return "not disturbed"

    assert run(body) == "not disturbed"


@in_both
def test_never_in_a_shield(run: Callable[[Callable[[], object]], object]) -> None:
    """An abort that comes in a shield is raised at its end."""
    reached: list[str] = []

    def body() -> None:
        token = LiveToken("id")

        @interrupted(token)
        def _() -> None:
            with token.shield():
                token.abort(PENDING)
                spin(1000)
                reached.append("end of the shield")
            spin_until(lambda: False)
            reached.append("end of the body")

    with pytest.raises(TaskAborted, match="why"):
        run(body)
    assert reached == ["end of the shield"]


@in_both
@pytest.mark.usefixtures("hasty_threads")
def test_aborts_near_a_shield(
    run: Callable[[Callable[[], object]], object], aborter: Aborter
) -> None:
    """Whenever the abort comes, the block of a shield runs to its end or not at all."""
    torn: list[int] = []

    def one() -> None:
        token = LiveToken("id")
        begun = ended = False
        try:

            @interrupted(token)
            def _() -> None:
                nonlocal begun, ended
                aborter.put(token)
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
    """An abort that came before is raised at the beginning of the body."""

    def body() -> None:
        token = LiveToken("id")
        token.abort(PENDING)

        @interrupted(token)
        def _() -> None:
            spin_until(lambda: False)

    with pytest.raises(TaskAborted, match="why"):
        run(body)


def test_signal_interrupts_a_blocking_call() -> None:
    """In the main thread, the abort ends even a sleep."""
    token = LiveToken("id")
    start = time.monotonic()
    timer = threading.Timer(0.05, token.abort, [PENDING])
    timer.start()
    with pytest.raises(TaskAborted):
        interrupted(token)(lambda: time.sleep(BOUND))
    timer.join()
    assert time.monotonic() - start < BOUND / 2


PROFILED = """
import sys, threading
from aioabort.timing import Timing
from aioabort.worker.execution.interrupt import call_interruptibly
from aioabort.worker.live_token import LiveToken

def body():
    call_interruptibly(LiveToken("id"), 23, Timing(), lambda: None)

thread = threading.Thread(target=body)
thread.start()
thread.join()
sys.setprofile(lambda *_: None)
(lambda: None)()
"""


def test_profiler_after_a_body() -> None:
    """A worker whose code is profiled or traced goes on after a body in a thread.

    Closes: CPython 3.11 is left with a request that no thread takes | a call, profiled,
    asks for it for ever
    """
    subprocess.run([sys.executable, "-c", PROFILED], check=True, timeout=BOUND)
