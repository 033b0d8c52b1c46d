"""Checks of the app, and of ids, texts and numbers before PostgreSQL gets them."""

from celery import Celery

from aioabort.exceptions import InvalidRequest
from aioabort.timing import LONGEST, describe, is_count, is_duration

LONGEST_TASK_ID = 155
MOST_BYTES = 4_096

#: The largest number of rows that PostgreSQL can be asked for.
LARGEST_LIMIT = 2**63 - 1


def check_app(app: object) -> None:
    """Raise TypeError unless *app* is a Celery app."""
    if not isinstance(app, Celery):
        raise TypeError(
            f"app must be your Celery app, such as Celery('proj'), not {app!r}"
        )


def check_task_id(task_id: object) -> None:
    """Raise InvalidRequest unless *task_id* fits into Celery's column."""
    if not isinstance(task_id, str) or not task_id:
        raise InvalidRequest(f"A task id is a string that is not empty: {task_id!r}")
    if len(task_id) > LONGEST_TASK_ID:
        raise InvalidRequest(
            f"A task id has at most {LONGEST_TASK_ID} characters, "
            f"not {len(task_id)}: {task_id[:40]!r}…"
        )
    _encode("task id", task_id)


def check_text(name: str, text: object) -> None:
    """Raise InvalidRequest unless *text* is None or at most 4,096 bytes of UTF-8."""
    if text is None:
        return
    if not isinstance(text, str):
        raise InvalidRequest(f"{name} is a string or None, not {type(text).__name__}")
    if len(encoded := _encode(name, text)) > MOST_BYTES:
        raise InvalidRequest(
            f"{name} has at most {MOST_BYTES} bytes in UTF-8, not {len(encoded)}"
        )


def check_grace(grace: object) -> None:
    """Raise InvalidRequest unless *grace* is None or a number of seconds, 0 or more."""
    if grace is not None and not is_duration(grace):
        raise InvalidRequest(
            f"grace is a number of seconds from 0 to {LONGEST:.0f}, "
            f"not {describe(grace)}"
        )


def check_limit(limit: object) -> None:
    """Raise InvalidRequest unless *limit* is a number of rows, 0 or more."""
    if not is_count(limit) or limit > LARGEST_LIMIT:
        raise InvalidRequest(
            f"limit is a whole number from 0 to {LARGEST_LIMIT}, not {describe(limit)}"
        )


def _encode(name: str, text: str) -> bytes:
    if "\0" in text:
        raise InvalidRequest(f"{name} contains a NUL character")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name} is not valid Unicode: {error.reason}") from None
