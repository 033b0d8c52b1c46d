"""What can go wrong, in one tree.

AioabortError
├── TaskAborted          the task was asked to stop, and stopped (also TaskRevokedError)
├── WaitTimeout          the task did not end in time (also TimeoutError)
├── InvalidRequest       a task id, reason or name that cannot be stored (also ValueError)
├── ClientClosed         a client used before it was opened or after it was closed
├── WrongLoop            a client or a pool used on another event loop than its own
├── CoroutineCancelled   an async def task was cancelled, but not by an abort
├── ResultTooLarge       a result that PostgreSQL cannot keep (also EncodeError)
├── ResultsElsewhere     the result is kept where nobody can look it up (rpc://)
└── StoreError           PostgreSQL refused: rights, a missing table, a wrong name
    └── StoreUnavailable PostgreSQL cannot be reached at present (also ConnectionError)

A configuration that cannot work raises Celery's own ImproperlyConfigured.
"""

import builtins

from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.exceptions import EncodeError


class AioabortError(Exception):
    """The root of all errors of this package."""


class TaskAborted(AioabortError, TaskRevokedError):
    """The task was asked to stop, and stopped.

    Raised in the task by ``raise_if_aborted()``, and to those who await its result.
    All three facts are its ``args``: that is how Celery's serializers carry it.
    """

    def __init__(
        self,
        reason: str | None = None,
        requested_by: str | None = None,
        task_id: str | None = None,
    ) -> None:
        super().__init__(reason, requested_by, task_id)
        self.reason = reason
        self.requested_by = requested_by
        self.task_id = task_id

    def __str__(self) -> str:
        task = f"Task {self.task_id!r}" if self.task_id else "The task"
        by = f" by {self.requested_by}" if self.requested_by else ""
        return f"{task} was aborted{by}" + (f": {self.reason}" if self.reason else "")


class WaitTimeout(AioabortError, CeleryTimeoutError, builtins.TimeoutError):
    """The task did not end within the time given to ``wait()``; it may still run.

    Of a receipt's ``seen()``: the task did not notice its abort.
    """

    def __init__(
        self, task_id: str, timeout: float, trouble: str = "", verb: str = "end"
    ) -> None:
        super().__init__(
            f"Task {task_id!r} did not {verb} within {timeout:g} s"
            + (f", and PostgreSQL could not be asked: {trouble}" if trouble else "")
        )
        self.task_id = task_id
        self.timeout = timeout


class InvalidRequest(AioabortError, ValueError):
    """A task id, a reason or a name that PostgreSQL could not store.

    An id has 1 to 155 characters, a text at most 4,096 bytes in UTF-8, neither a NUL;
    a grace is a number of seconds, 0 or more.
    """


class ClientClosed(AioabortError, RuntimeError):
    """The client was used before it was opened or after it was closed."""


class WrongLoop(AioabortError, RuntimeError):
    """A client, or the pool it was given, was used on another loop than its own."""


class CoroutineCancelled(AioabortError):
    """The coroutine of an ``async def`` task was cancelled, but not by an abort."""


class ResultTooLarge(AioabortError, EncodeError):
    """A task's result takes more than PostgreSQL can keep of a task: 1 GB.

    As with a result that cannot be encoded, the task fails with this error.
    """

    def __init__(self, task_id: str, size: int, largest: int) -> None:
        super().__init__(task_id, size, largest)
        self.task_id = task_id
        self.size = size
        self.largest = largest

    def __str__(self) -> str:
        return (
            f"The result of task {self.task_id!r} takes {self.size:,} bytes, "
            f"and PostgreSQL can keep {self.largest:,}"
        )


class ResultsElsewhere(AioabortError, NotImplementedError):
    """The task's result is kept where it cannot be looked up, or not at all."""


class StoreError(AioabortError):
    """PostgreSQL refused a statement; trying again will not help."""


class StoreUnavailable(StoreError, ConnectionError):
    """PostgreSQL cannot be reached at present; a later try may succeed."""
