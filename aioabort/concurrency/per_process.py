"""Values that belong to one process: a forked child starts without its parent's."""

import os
import threading
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class PerProcess(Generic[K, V]):
    """Values by key. Each process makes a value at its first use.

    In a forked child, *on_fork* is called with each value of the parent.
    """

    def __init__(self, on_fork: Callable[[V], object] | None = None) -> None:
        self._on_fork = on_fork
        self._values: dict[K, V] = {}
        self._lock = threading.Lock()

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of *key*; each process calls *make* once for it."""
        value = self._values.get(key)
        if value is not None:
            return value
        # Before the lock is taken: a child that is forked while another thread holds
        # it needs the hook, which replaces the lock.
        _forget_after_forks(self)
        with self._lock:
            value = self._values.get(key)
            if value is None:
                value = self._values[key] = make()
        return value

    def values(self) -> list[V]:
        """Return the values of this process."""
        return list(self._values.values())

    def take_all(self) -> dict[K, V]:
        """Remove and return all values; a later ``get()`` makes new ones."""
        with self._lock:
            values = self._values.copy()
            self._values.clear()
        return values

    def forget_parent(self) -> None:
        """Start without values, and with a lock that no thread holds."""
        inherited, self._values = self._values, {}
        self._lock = threading.Lock()
        _inherited.append(inherited)
        if self._on_fork is not None:
            for value in inherited.values():
                self._on_fork(value)


#: The parent's values, which a child never deletes. Garbage collection of an inherited
#: connection would remove its socket from the epoll instance that both processes share.
_inherited: Final[list[object]] = []


@cache
def _forget_after_forks(values: PerProcess[Any, Any]) -> None:
    # Two threads may get here at the same time: a second hook does no harm.
    os.register_at_fork(after_in_child=values.forget_parent)
