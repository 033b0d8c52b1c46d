"""Stores REVOKED as the final state of a task, unless the task has a result.

An id may run twice: a broker delivers a message again when its visibility timeout is over.
A client may have got the result of the one run when the other one ends by an abort, so
the result stays. What a poll has seen before does not decide that:

    one run: polls, FAILURE is not stored | other run: FAILURE | one run: REVOKED
"""

from typing import Any

from celery import states
from celery.app.task import Context

from aioabort.celery_compat import (
    is_database_backend,
    store_in_database_unless_result,
    stored_state,
)
from aioabort.models import RESULT_STATES
from aioabort.orm import is_orm_backend, renew_connection, store_by_orm_unless_result


def store_revoked(backend: Any, context: Context, error: BaseException) -> bool:
    """Store *error* as REVOKED; return False if the task has a result, which stays.

    In a database, the row's lock makes that certain. Other backends cannot store on a
    condition, so their result is read just before.
    """
    task_id = context.id or ""
    if hasattr(backend, "store_revoked"):
        return bool(backend.store_revoked(task_id, error, context))
    if is_database_backend(backend):
        return store_in_database_unless_result(
            backend, task_id, error, states.REVOKED, context
        )
    if is_orm_backend(backend):
        return store_by_orm_unless_result(
            backend, task_id, error, states.REVOKED, context
        )
    if stored_state(backend, task_id) in RESULT_STATES:
        return False
    backend.store_result(task_id, error, states.REVOKED, request=context)
    return True


def restore_revoked(backend: Any, context: Context, error: BaseException) -> bool:
    """Store *error* as REVOKED if RETRY is stored; return whether it was."""
    renew_connection(backend)
    if stored_state(backend, context.id or "") != states.RETRY:
        return False
    return store_revoked(backend, context, error)
