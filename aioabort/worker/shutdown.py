"""Whether the worker shuts down, for its main process and for its children.

A warm shutdown waits for the end of each task, and does not signal the child that runs
it. A child that only repeats a failed call must not delay it.
"""

import mmap

from celery import signals

#: One byte that the children share with the main process, which makes it before it forks
#: them. A child that is spawned has none, and never sees a shutdown.
_flag: mmap.mmap | None = None


def is_shutting_down() -> bool:
    """Whether the main process of this worker shuts down."""
    return _flag is not None and bool(_flag[0])


def _make_flag(**_: object) -> None:
    global _flag  # noqa: PLW0603
    _flag = mmap.mmap(-1, 1)


def _set_flag(**_: object) -> None:
    if _flag is not None:
        _flag[0] = 1


signals.worker_init.connect(_make_flag, weak=False)
signals.worker_shutting_down.connect(_set_flag, weak=False)
