"""What a read of Celery's result backend returns, and the errors of such a read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pickle import PickleError
from typing import Any, Protocol

from celery import states
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.exceptions import ImproperlyConfigured, SecurityError
from kombu.exceptions import KombuError

from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.reconnect import may_pass

Meta = dict[str, Any]

#: Errors of one payload that cannot be decoded, of a backend that reads and decodes in
#: one call. Any other error means that the backend cannot be read.
PAYLOAD_ERRORS = (
    AttributeError,
    EOFError,
    ImportError,
    KombuError,
    LookupError,
    PickleError,
    RecursionError,
    SecurityError,
    TypeError,
    ValueError,
)

#: Errors with which a server refuses a client; each client library has its own classes.
_REFUSALS = frozenset(
    {"AuthenticationError", "AuthorizationError", "NoPermissionError"}
)


@dataclass(frozen=True, slots=True)
class Unread:
    """A large value of so many bytes, which a shared read leaves out."""

    size: int


#: What the backend has stored for a task, or the error of decoding it.
Reading = Meta | Exception | Unread


class ResultReader(Protocol):
    """Reads the stored results of many tasks in one call."""

    async def read(
        self, task_ids: Sequence[str], timeout: float | None = None
    ) -> dict[str, Reading]:
        """Return what is stored for each task.

        Raises StoreUnavailable if the backend is away or does not answer within
        *timeout* seconds, and StoreError if it cannot be read for another reason.
        """
        ...


def nothing_stored() -> Meta:
    """Return what Celery says of a task for which nothing is stored."""
    return {"status": states.PENDING, "result": None}


def decoded(
    decode: Callable[[Any], Meta],
    payload: Any,
    task_id: str,
    errors: type[Exception] | tuple[type[Exception], ...] = Exception,
) -> Meta | Exception:
    """Return what *decode* returns, or one of *errors*, which are those of the payload."""
    try:
        return decode(payload)
    except errors as error:
        error.add_note(
            f"Celery cannot decode the result of task {task_id!r} in its result_backend"
        )
        return error


def why_unreadable(backend: object) -> str | None:
    """Return why no client can ever read *backend*; None if clients can."""
    if isinstance(backend, DisabledBackend):
        return "The app has no result backend: there is nothing to await; set result_backend"
    if isinstance(backend, RPCBackend):
        return (
            "With rpc:// only the thread that published the task can read its result: "
            "set another result_backend to await tasks"
        )
    return None


def unreadable(
    error: Exception, hide: Callable[[str], str] = lambda text: text
) -> StoreError:
    """Return the error of a failed read; *hide* removes what must not be shown.

    Its cause is *error*, unless that shows such a thing. It is StoreUnavailable if a later
    read may succeed. Each client library raises other classes for a server that is away.
    """
    names = {cls.__name__ for cls in type(error).__mro__}
    is_refusal = isinstance(error, ImproperlyConfigured) or names & _REFUSALS
    is_passing = may_pass(error) and not is_refusal
    text = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    problem = (StoreUnavailable if is_passing else StoreError)(
        f"Celery's result backend cannot be read (setting result_backend): {hide(text)}"
    )
    problem.__cause__ = error if hide(str(error)) == str(error) else None
    return problem


def too_late(timeout: float) -> StoreUnavailable:
    """Return the error of a read that took more than *timeout* seconds."""
    return StoreUnavailable(
        f"Celery's result backend does not answer within {timeout:g} s"
    )
