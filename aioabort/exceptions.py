"""The errors of this package.

AioabortError
├── TaskAborted          the task stopped because of an abort (also TaskRevokedError)
├── WaitTimeout          the task did not end in time (also TimeoutError)
│   └── SeenTimeout      the task did not see its abort in time
├── InvalidRequest       an id, text or number cannot be used (also ValueError)
├── ClientClosed         the client is not open yet, or closed (also RuntimeError)
├── WrongLoop            the client belongs to another event loop (also RuntimeError)
├── CoroutineCancelled   an async def task was cancelled, but not by an abort
├── ResultTooLarge       PostgreSQL cannot store a result (also EncodeError)
├── ResultsElsewhere     the result cannot be read: rpc:// (also NotImplementedError)
├── ResultMissing        the result has expired, or was never stored (also LookupError)
└── StoreError           PostgreSQL refused: a right or a table is missing
    └── StoreUnavailable PostgreSQL cannot be reached now (also ConnectionError)
        └── StoreBusy    PostgreSQL answers, but a lock or a limit is in the way

AbortInterrupt is a BaseException and stands apart: it passes ``except Exception``.

An invalid configuration raises Celery's ImproperlyConfigured.
"""

import builtins
from typing import Any

from celery.exceptions import TaskRevokedError
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.exceptions import EncodeError


class AioabortError(Exception):
    """The base class of all errors of this package."""


class TaskAborted(AioabortError, TaskRevokedError):
    """The task stopped because of an abort request.

    ``raise_if_aborted()`` raises it in the task, and ``wait()`` in the client. ``args``
    has all three attributes, because Celery's serializers keep ``args`` only.
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


class AbortInterrupt(BaseException):
    """The abort of a task that has swallowed TaskAborted, and goes on.

    With ``abort_mode="raise"``, the abort is first raised as TaskAborted, and then as
    this, which ``except Exception`` does not catch. A body that it leaves ends like one
    that TaskAborted leaves.
    """

    def __init__(
        self,
        reason: str | None = None,
        requested_by: str | None = None,
        task_id: str | None = None,
    ) -> None:
        super().__init__(reason, requested_by, task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return str(TaskAborted(*self.args))


class WaitTimeout(AioabortError, CeleryTimeoutError, builtins.TimeoutError):
    """The task did not end within the timeout of ``wait()``; it may still run."""

    problem = "did not end"

    def __init__(self, task_id: str, timeout: float, trouble: str = "") -> None:
        super().__init__(
            f"Task {task_id!r} {self.problem} within {timeout:g} s"
            + (f", and PostgreSQL could not be asked: {trouble}" if trouble else "")
        )
        self.task_id = task_id
        self.timeout = timeout
        self._arguments = (task_id, timeout, trouble)

    def __reduce__(self) -> tuple[Any, ...]:
        # By default, pickle passes the message alone.
        return type(self), self._arguments


class SeenTimeout(WaitTimeout):
    """The task did not notice its abort within the time given to ``seen()``."""

    problem = "did not notice its abort"


class InvalidRequest(AioabortError, ValueError):
    """A task id, a reason, a name or a number that an argument gives cannot be used.

    An id has 1 to 155 characters, a reason or a name at most 4,096 bytes in UTF-8. None
    may contain a NUL. A grace is a number of seconds, 0 or more, and a timeout is any
    number of seconds or None. A bool or a NaN is no number.
    """


class ClientClosed(AioabortError, RuntimeError):
    """The client was used before it was opened, or after it was closed."""


class WrongLoop(AioabortError, RuntimeError):
    """The client, or the pool passed to it, belongs to another event loop."""


class CoroutineCancelled(AioabortError):
    """The coroutine of an ``async def`` task was cancelled, but not by an abort."""


class ResultTooLarge(AioabortError, EncodeError):
    """The result of a task is larger than PostgreSQL can store: 1 GB.

    The task fails with this error, as with a result that cannot be encoded.
    """

    def __init__(self, task_id: str, size: int, largest: int) -> None:
        super().__init__(task_id, size, largest)
        self.task_id = task_id
        self.size = size
        self.largest = largest

    def __str__(self) -> str:
        return (
            f"The result of task {self.task_id!r} has {self.size:,} bytes, and PostgreSQL "
            f"can store {self.largest:,}: store it elsewhere, and return where"
        )


class ResultsElsewhere(AioabortError, NotImplementedError):
    """The result of the task cannot be read: the backend is ``rpc://``, or none."""


class ResultMissing(AioabortError, LookupError):
    """The task has ended, but nothing stored says with which value or error.

    Celery has deleted its result (it expires), or never stored it (``ignore_result``).
    ``outcome`` is the outcome of the task's abort request, if there is one.
    """

    def __init__(self, task_id: str, outcome: str | None = None) -> None:
        super().__init__(task_id, outcome)
        self.task_id = task_id
        self.outcome = outcome

    def __str__(self) -> str:
        how = f" (its abort request says: {self.outcome})" if self.outcome else ""
        return (
            f"The result of task {self.task_id!r} is not stored{how}: it has expired, "
            "or the task ignores its result"
        )


class StoreError(AioabortError):
    """PostgreSQL refused a statement; trying again does not help."""


class StoreUnavailable(StoreError, ConnectionError):
    """PostgreSQL cannot be reached now; a later try may succeed."""


class StoreBusy(StoreUnavailable):
    """PostgreSQL answers, but cannot run the statement now; a later try may succeed.

    The statement waited too long for a lock, conflicted with other transactions again
    and again, or exceeded a limit of the server. It changed nothing.
    """
