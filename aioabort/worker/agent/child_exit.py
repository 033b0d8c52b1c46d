"""The end of a prefork child that SIGTERM ends, as by ``revoke(terminate=True)``.

The child tells the main process that it ends, and the main process answers with another
SIGTERM, which has its default action by then. billiard blocks it in the main thread of
the child while that holds the lock of the pool's results. If another thread of the child
took the signal, the process would end without releasing the lock, and all processes of
the pool would wait for it for ever.
"""

import signal
import threading

from aioabort.celery_compat import is_main_process


def keep_sigterm_for_main_thread(**_: object) -> None:
    """Let the next SIGTERM end this process when its main thread does not block it."""
    # Before the first SIGTERM, billiard's handler raises in the main thread, and so
    # releases the lock.
    is_default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if is_default and not is_main_process():
        signal.signal(signal.SIGTERM, _send_to_main_thread)


def _send_to_main_thread(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    # Python calls handlers in the main thread.
    signal.pthread_kill(threading.get_ident(), number)
