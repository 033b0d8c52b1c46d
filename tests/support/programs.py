"""Programs that tests start, and that end with the tests, however those end."""

import ctypes
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tests.support.waiting import BOUND, block_until, until

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)

_HAS_PRCTL = sys.platform == "linux"

#: Seconds; a program takes longer to start than anything that it does afterwards.
START_BOUND = 2 * BOUND

#: Above those of known services, and below the ephemeral ones.
PORTS = range(20_000, 32_000)

_given_ports: set[int] = set()


def spawn(
    *command: str | Path, log: Path, dying: int = signal.SIGKILL, **options: Any
) -> "subprocess.Popen[bytes]":
    """Start a program that gets the signal *dying* if this process dies, on Linux.

    Call it from the main thread: the program dies with the thread that starts it.
    """
    # One system call, which takes no lock.
    die_with_us = partial(_libc.prctl, _PR_SET_PDEATHSIG, dying) if _HAS_PRCTL else None
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A Ctrl-C is for pytest, which then stops things in their order.
            start_new_session=True,
            preexec_fn=die_with_us,  # noqa: PLW1509
            **options,
        )


def block_until_started(
    process: "subprocess.Popen[bytes]", is_ready: Callable[[], T], log: Path
) -> T:
    """Block the thread until *is_ready* has a true value, and return that.

    Raise RuntimeError with the program's log if it ends before, or takes too long.
    """
    try:
        return block_until(_unless_ended(process, is_ready, log), START_BOUND)
    except TimeoutError as error:
        raise _not_started(log) from error


async def until_started(
    process: "subprocess.Popen[bytes]", is_ready: Callable[[], T], log: Path
) -> T:
    """Do what :func:`block_until_started` does, without blocking the loop."""
    try:
        return await until(_unless_ended(process, is_ready, log), START_BOUND)
    except TimeoutError as error:
        raise _not_started(log) from error


def _unless_ended(
    process: "subprocess.Popen[bytes]", is_ready: Callable[[], T], log: Path
) -> Callable[[], T]:
    def value() -> T:
        if process.poll() is not None:
            raise RuntimeError(f"The program has ended:\n{_end_of(log)}")
        return is_ready()

    return value


def _not_started(log: Path) -> RuntimeError:
    return RuntimeError(f"The program did not start:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-5_000:]


def free_port() -> int:
    """Return a port of the loopback that no program listens on, a new one each time.

    The system gives it to no client's connection before the program listens, because
    it is not one of the ephemeral ports (32,768 and more on Linux).
    """
    while True:
        port = random.choice(PORTS)
        if port in _given_ports:
            continue
        with socket.socket() as listener:
            # A server that ended just now leaves connections that wait for their end.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given_ports.add(port)
        return port


def listens(port: int) -> bool:
    """Whether a program listens on *port* of the loopback."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
