"""The signals of the process that runs the tests."""

import signal


def reset_ignored_signals() -> None:
    """Undo that a shell's background jobs ignore SIGINT and SIGQUIT.

    Programs under test would inherit that, and tests send them these signals.
    """
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
