"""Tasks that show what a pool makes of threads, processes and signals."""

import asyncio
import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded
from marks import note, until, wait_for

from aioabort import AbortableTask, current_token


def waiting(self: AbortableTask, place: str) -> str:
    """Sleep until the abort, and tell the process."""
    note(place, "body", os.getpid())
    self.abort_token.wait(30)
    self.raise_if_aborted()
    return "not aborted"


def spinning(self: AbortableTask, place: str) -> str:
    """Compute, and let no other greenlet run."""
    note(place, "body")
    token, deadline = self.abort_token, time.monotonic() + 20
    while not token.aborted and time.monotonic() < deadline:
        pass
    return "stopped" if token.is_aborted() else "not aborted"


def beating(place: str, times: int) -> float:
    """Take turns of 10 ms; return the longest time between two."""
    turns = [time.monotonic()]
    for _ in range(times):
        time.sleep(0.01)
        turns.append(time.monotonic())
    note(place, "beaten")
    return max(after - before for before, after in pairwise(turns))


def running_a_loop(place: str) -> str:
    """Use asyncio without being a coroutine."""
    note(place, "body")
    return asyncio.run(asyncio.sleep(0.01, "ran"))


def calling_back(self: AbortableTask, place: str) -> None:
    """Have the abort call a function that blocks, and wait for its effect."""

    def tell() -> None:
        time.sleep(0.01)
        note(place, "called")

    note(place, "body")
    with self.abort_token.on_abort(tell):
        wait_for(place, "called")
    self.raise_if_aborted()


def looking_away(place: str) -> str:
    """Never look, as a task need not that is interrupted."""
    note(place, "body")
    wait_for(place, "end")
    return "done"


async def coroutine(self: AbortableTask, place: str) -> str:
    """Use a name and a thread, then wait for the abort."""
    loop = asyncio.get_running_loop()
    await loop.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
    note(place, "id", await asyncio.to_thread(lambda: self.request.id))
    note(place, "body")
    try:
        await asyncio.sleep(30)
    finally:
        await asyncio.sleep(0.01)
        note(place, "cleaned")
    return "not aborted"


def limited(self: AbortableTask, place: str) -> str:
    """Look for the abort when the soft time limit is over, and not before."""
    note(place, "body")
    try:
        wait_for(place, "never")
    except SoftTimeLimitExceeded:
        note(place, "limited")
        until(self.is_aborted)
    return "stopped"


def dying_aborted(self: AbortableTask, place: str) -> None:
    """See the abort, and lose the process before that has any effect."""
    note(place, "body")
    until(self.is_aborted)
    wait_for(place, "die")
    os.kill(os.getpid(), signal.SIGKILL)


def ignoring(self: AbortableTask, place: str) -> str:
    """See the abort, and go on until the test says so."""
    note(place, "body", os.getpid())
    until(self.is_aborted)
    note(place, "seen")
    wait_for(place, "end")
    return "done"


def with_threads(place: str) -> str:
    """Have a thread look that was handed nothing."""
    note(place, "body")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(until, lambda: current_token().is_aborted()).result()
    return "stopped"


def stuck(place: str) -> None:
    """Compute in C, which lets no other thread of Python run."""
    note(place, "body", os.getpid())
    ctypes.PyDLL(None).sleep(60)


def locked(place: str) -> None:
    """Wait in C, and go on waiting whatever signal arrives."""
    note(place, "body", os.getpid())
    c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    c.pthread_mutex_lock(mutex)
    c.pthread_mutex_lock(mutex)


def lasting(place: str, seconds: float) -> str:
    """Take so long, without a check."""
    note(place, "body", os.getpid())
    time.sleep(seconds)
    return "done"


def failing(place: str) -> None:
    """Fail when the test says so, without a check."""
    note(place, "body")
    wait_for(place, "end")
    note(place, "ended")
    raise ValueError("ended")


def define(task: Callable[..., Any]) -> SimpleNamespace:
    """Return the tasks of this module, for the app whose decorator *task* is."""
    return SimpleNamespace(
        ignoring=task(bind=True)(ignoring),
        with_threads=task(with_threads),
        stuck=task(stuck),
        locked=task(locked),
        lasting=task(lasting),
        failing=task(failing),
        waiting=task(bind=True)(waiting),
        spinning=task(bind=True)(spinning),
        beating=task(beating),
        running_a_loop=task(running_a_loop),
        calling_back=task(bind=True)(calling_back),
        looking_away=task(abort_mode="raise")(looking_away),
        coroutine=task(bind=True)(coroutine),
        limited=task(bind=True)(limited),
        dying_aborted=task(bind=True, acks_late=True, reject_on_worker_lost=True)(
            dying_aborted
        ),
    )
