"""From Celery's row to a snapshot, by the rules of the Celery that is installed."""

import pickle
from typing import Any, cast

from celery import states
from celery.exceptions import ChordError, TaskRevokedError

from aioabort.exceptions import TaskAborted
from aioabort.records import TaskRow, TaskSnapshot


def decode(row: TaskRow, backend: Any) -> TaskSnapshot[Any]:
    """Return *row* with its result decoded by *backend*, Celery's own.

    Raises what Celery raises for a payload that it does not accept or understand.
    """
    meta = {
        "task_id": row.task_id,
        "status": row.state or states.PENDING,
        "result": _decode_payload(row.result, backend),
        "traceback": row.traceback,
        "date_done": row.date_done,
    }
    return from_meta(row, backend.meta_from_decoded(meta))


def from_meta(row: TaskRow, meta: dict[str, Any]) -> TaskSnapshot[Any]:
    """Return a snapshot of what a backend of Celery's says, and *row*'s request."""
    return TaskSnapshot(
        task_id=row.task_id,
        state=meta["status"],
        result=meta.get("result"),
        traceback=meta.get("traceback"),
        date_done=meta.get("date_done"),
        request=row.request,
        is_finished=row.is_finished or meta["status"] in states.READY_STATES,
        is_aborted=row.is_aborted,
    )


def _decode_payload(payload: bytes | None, backend: Any) -> Any:
    if payload is None:
        return None
    if hasattr(backend, "_decode_stored_result"):
        return backend._decode_stored_result(payload)
    # Before 5.7, Celery's column is a pickle whatever the serializer, and Celery
    # unpickles it just so.
    return pickle.loads(payload)  # noqa: S301


def value_of(snapshot: TaskSnapshot[Any]) -> Any:
    """Return the value of a task that has ended, or raise the error that ended it."""
    if snapshot.state in states.PROPAGATE_STATES:
        # A backend may decode it once for all who wait; each adds to its traceback.
        raise _error_of(snapshot).with_traceback(None)
    if snapshot.state == states.SUCCESS:
        return snapshot.result
    # It stores no result: how the request ended is all that is known.
    if snapshot.is_aborted and snapshot.request is not None:
        raise snapshot.request.error()
    return None


def has_stopped(snapshot: TaskSnapshot[Any]) -> bool:
    """Whether an abort, of this task or of one before it, is stored as its end."""
    # A task that fails by another's abort has an error like others.
    is_revoked = snapshot.state == states.REVOKED
    return is_revoked and isinstance(snapshot.result, TaskAborted)


def never_began(snapshot: TaskSnapshot[Any]) -> bool:
    """Whether an abort of what was to come before the task has ended it.

    Of the body of a chord, whose header was aborted, Celery says so in words only.
    """
    error: Any = snapshot.result
    if isinstance(error, ChordError):
        return TaskAborted.__name__ in str(error)
    return has_stopped(snapshot) and error.task_id != snapshot.task_id


def _error_of(snapshot: TaskSnapshot[Any]) -> BaseException:
    error, request = snapshot.result, snapshot.request
    if has_stopped(snapshot):
        return cast("TaskAborted", error)
    if request is not None and (snapshot.is_aborted or never_began(snapshot)):
        # If killed, Celery stores that the task was revoked, and by nobody.
        return request.error()
    if isinstance(error, BaseException):
        return error
    return TaskRevokedError(f"Task {snapshot.task_id!r} ended as {snapshot.state}")
