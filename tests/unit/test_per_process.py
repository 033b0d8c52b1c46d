"""Values of one process, before and after a fork."""

import gc
import os
import threading
import weakref
from collections.abc import Callable

import pytest

from aioabort.concurrency import per_process
from aioabort.concurrency.per_process import PerProcess


class Value:
    """A value that can be referenced weakly."""

    def __init__(self) -> None:
        self.forks = 0

    def count_fork(self) -> None:
        """Count a fork, as ``on_fork`` is to be called once per fork."""
        self.forks += 1


def holds_in_child(condition: Callable[[], object]) -> bool:
    """Return whether *condition* holds in a forked child within 5 seconds."""
    pid = os.fork()
    if not pid:
        answers: list[object] = []
        thread = threading.Thread(
            target=lambda: answers.append(condition()), daemon=True
        )
        thread.start()
        thread.join(5)
        os._exit(0 if answers and answers[0] else 1)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == 0


def test_a_value_is_made_once_for_each_key() -> None:
    """A second call returns the first value."""
    values = PerProcess[str, Value]()
    first = values.get("a", Value)
    assert values.get("a", Value) is first
    assert values.get("b", Value) is not first
    assert values.values() == [first, values.get("b", Value)]


def test_a_value_is_made_once_by_many_threads() -> None:
    """Closes: A: get(), making the value | B: get() makes a second one."""
    values = PerProcess[None, Value]()
    is_making, go_on = threading.Event(), threading.Event()
    made: list[Value] = []

    def make() -> Value:
        is_making.set()
        assert go_on.wait(5)
        made.append(Value())
        return made[-1]

    threads = [threading.Thread(target=values.get, args=(None, make)) for _ in "ab"]
    threads[0].start()
    assert is_making.wait(5)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(5)
    assert len(made) == 1


def test_what_is_taken_is_made_anew() -> None:
    """After take_all() the next get() makes a new value."""
    values = PerProcess[None, Value]()
    first = values.get(None, Value)
    assert values.take_all() == {None: first}
    assert values.values() == []
    assert values.get(None, Value) is not first


def test_a_child_starts_without_values() -> None:
    """The child makes values of its own, and the parent keeps its own."""
    values = PerProcess[None, Value]()
    first = values.get(None, Value)
    assert holds_in_child(
        lambda: values.values() == [] and values.get(None, Value) is not first
    )
    assert values.get(None, Value) is first


@pytest.mark.parametrize("is_first", [True, False], ids=["first value", "another"])
def test_a_lock_that_a_thread_holds_at_the_fork_is_replaced(is_first: bool) -> None:
    """Closes: A: get(), making the value | B: forks | child: get() waits for A's lock."""
    values = PerProcess[str, Value]()
    if not is_first:
        values.get("other", Value)
    is_making, go_on = threading.Event(), threading.Event()

    def make() -> Value:
        is_making.set()
        assert go_on.wait(10)
        return Value()

    thread = threading.Thread(target=values.get, args=("key", make))
    thread.start()
    assert is_making.wait(5)
    try:
        assert holds_in_child(lambda: values.get("key", Value))
    finally:
        go_on.set()
        thread.join(5)


def test_on_fork_gets_each_value_of_the_parent() -> None:
    """It is called in the child only, once for each value."""
    values = PerProcess[int, Value](on_fork=Value.count_fork)
    made = [values.get(number, Value) for number in range(3)]
    assert holds_in_child(lambda: [value.forks for value in made] == [1, 1, 1])
    assert [value.forks for value in made] == [0, 0, 0]


def test_a_failing_on_fork_leaves_the_child_usable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Closes: child: on_fork raises before the lock is replaced | get() waits for it."""

    def fail(_value: Value) -> None:
        raise ValueError

    values = PerProcess[None, Value](on_fork=fail)
    first = values.get(None, Value)
    monkeypatch.setattr(per_process, "_inherited", [])
    with values._lock, pytest.raises(ValueError):  # noqa: PT011 (raised above)
        values.forget_parent()
    assert values.get(None, Value) is not first


def test_the_values_of_the_parent_are_never_deleted() -> None:
    """Closes: child: an inherited connection is deleted | its socket leaves the epoll
    instance, which the parent shares | the parent hears nothing more.
    """
    values = PerProcess[None, Value]()
    find = weakref.ref(values.get(None, Value))

    def is_alive() -> bool:
        values.take_all()
        gc.collect()
        return find() is not None

    assert holds_in_child(is_alive)
