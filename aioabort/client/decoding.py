"""Decodes stored rows, as the installed result backend does."""

from typing import Any, cast

from celery import states
from celery.exceptions import ChordError, TaskRevokedError

from aioabort.celery_compat import decode_database_result
from aioabort.exceptions import ResultMissing, TaskAborted
from aioabort.models import TaskRow, TaskSnapshot


def decode(row: TaskRow, backend: Any) -> TaskSnapshot[Any]:
    """Return *row* with its result decoded by Celery's *backend*.

    Raises what Celery raises for a payload that it does not accept or understand.
    """
    meta = {
        "task_id": row.task_id,
        "status": row.state or states.PENDING,
        "result": _decode_result(row, backend),
        "traceback": row.traceback,
        "date_done": row.date_done,
    }
    return from_meta(row, backend.meta_from_decoded(meta))


def from_meta(row: TaskRow, meta: dict[str, Any]) -> TaskSnapshot[Any]:
    """Return a snapshot of Celery's *meta* of a task, and of the request in *row*."""
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


def _decode_result(row: TaskRow, backend: Any) -> Any:
    if row.result is None:
        return None
    if row.content_encoding is not None:
        # It reads nothing but this attribute of the row.
        return backend.decode_content(row, row.result.decode())
    return decode_database_result(backend, row.result)


def value_of(snapshot: TaskSnapshot[Any]) -> Any:
    """Return the value of a task that has ended, or raise the error that ended it."""
    if snapshot.state in states.PROPAGATE_STATES:
        # A backend may decode the error once for all waiters, and each of them would
        # add to its traceback.
        raise _error_of(snapshot).with_traceback(None)
    if snapshot.state == states.SUCCESS:
        return snapshot.result
    # Only the outcome of the abort request is known. A None could stand for a failure.
    request = snapshot.request
    if snapshot.is_aborted and request is not None:
        raise request.error()
    raise ResultMissing(snapshot.task_id, None if request is None else request.outcome)


def has_stopped(snapshot: TaskSnapshot[Any]) -> bool:
    """Whether the stored result is an abort of this task or of one before it."""
    # A FAILURE may hold a TaskAborted too: the task awaited another one, which was
    # aborted.
    is_revoked = snapshot.state == states.REVOKED
    return is_revoked and isinstance(snapshot.result, TaskAborted)


def never_began(snapshot: TaskSnapshot[Any]) -> bool:
    """Whether the task ended because a task before it in its canvas was aborted.

    If that was the header of a chord, Celery stores a ChordError for the body, with
    the abort in its message only.
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
        # For a killed task, Celery stores a TaskRevokedError without these facts.
        return request.error()
    if isinstance(error, BaseException):
        return error
    return TaskRevokedError(f"Task {snapshot.task_id!r} ended as {snapshot.state}")
