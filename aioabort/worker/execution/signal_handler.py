"""The signal that interrupts the main thread, and who else handles it.

The handler stays when a body has ended: a signal that arrives late would otherwise end
the process, if that is what the operating system does by default.
"""

import ctypes
import logging
import signal
import threading
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import Any, Final

logger: logging.Logger = logging.getLogger(__name__)

# A copy of the function, with a type that only ours has.
_getsig: Final = ctypes.pythonapi["PyOS_getsig"]
_getsig.restype = ctypes.c_void_p

#: How the operating system calls "default" and "ignored".
_NO_HANDLERS: Final = frozenset({0, 1})


class SignalHandler:
    """Python's handler of one signal; the handler before it gets the signals of others."""

    def __init__(self, number: int) -> None:
        self._number: Final = number
        self._on_signal: Callable[[], bool] | None = None
        self._previous: Any = None
        self._c_handler = 0

    def install(self, on_signal: Callable[[], bool]) -> bool:
        """Let the signal call *on_signal*, which returns whether the signal was its own.

        Returns False if C code handles the signal: Python cannot give that back. Only in
        the main thread.
        """
        installed = signal.getsignal(self._number)
        is_ours = installed == self._handle
        in_c = _c_handler(self._number)
        if not (is_ours and in_c == self._c_handler):
            if in_c not in _NO_HANDLERS and (is_ours or not callable(installed)):
                _warn_of_c_handler(self._number)
                return False
            if not is_ours:
                self._previous = installed
            signal.signal(self._number, self._handle)
            self._c_handler = _c_handler(self._number)
        self._on_signal = on_signal
        return True

    def send(self) -> None:
        """Send the signal to the main thread."""
        signal.pthread_kill(threading.main_thread().ident or 0, self._number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._on_signal is not None and self._on_signal():
            return
        if callable(self._previous):
            self._previous(number, frame)


@cache
def handler_of(number: int) -> SignalHandler:
    """Return the handler of the signal *number* of this process."""
    return SignalHandler(number)


def _c_handler(number: int) -> int:
    """Return the address of the function that handles the signal; 0 or 1 if none does."""
    return _getsig(number) or 0


@cache
def _warn_of_c_handler(number: int) -> None:
    logger.warning(
        'aioabort worker: a library handles %s, so that abort_mode="raise" cannot '
        "interrupt a blocking call; set aioabort_interrupt_signal to another signal",
        signal.Signals(number).name,
    )
