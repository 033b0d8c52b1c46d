"""The JSON form of a task, an abort request and a receipt.

Serialization cannot fail, because a task may return or raise any object. It also
publishes no internals: a value that JSON cannot hold becomes the name of its type, and
tracebacks are left out.
"""

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from datetime import date, time
from decimal import Decimal
from typing import Any, TypeAlias, cast
from uuid import UUID

from aioabort.models import AbortReceipt, AbortRequest, TaskSnapshot

Json: TypeAlias = (
    "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
)


def serialize(
    record: "TaskSnapshot[Any] | AbortReceipt | AbortRequest",
) -> dict[str, Json]:
    """Return *record* as a JSON object; dates are strings in ISO 8601.

    A snapshot has ``result`` for a value and ``error`` for an exception; one of the
    two is None. A receipt has ``task_id``, ``answer``, ``state`` and ``request``; the
    receipts in its ``before`` are left out. Values are converted by ``to_json()``.
    """
    match record:
        case TaskSnapshot():
            return _serialize_snapshot(record)
        case AbortReceipt():
            return {
                "task_id": record.task_id,
                "answer": record.answer,
                "state": record.state,
                "request": to_json(record.request),
            }
        case AbortRequest():
            names = (field.name for field in fields(record))
            return {name: to_json(getattr(record, name)) for name in names}


def to_json(value: object) -> Json:
    """Return *value* with nothing in it that JSON cannot hold.

    Bytes become Base64, sets become lists, keys become strings, and an exception
    becomes its ``type`` and ``message``. Any other object becomes its ``type``.
    """
    try:
        return _convert(value)
    except RecursionError:  # contains itself, or is nested too deeply
        return _type_of(value)


def _serialize_snapshot(snapshot: "TaskSnapshot[Any]") -> dict[str, Json]:
    result: object = snapshot.result
    has_failed = isinstance(result, BaseException)
    return {
        "task_id": snapshot.task_id,
        "state": snapshot.state,
        "is_finished": snapshot.is_finished,
        "is_aborted": snapshot.is_aborted,
        # Celery sets date_done with every state; it is the end only in a final state.
        "date_done": to_json(snapshot.date_done) if snapshot.is_finished else None,
        "result": None if has_failed else to_json(result),
        "error": to_json(result) if has_failed else None,
        "request": to_json(snapshot.request),
    }


def _convert(value: object) -> Json:  # noqa: C901, PLR0911 - a case per type
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if _has_digits(value) else _type_of(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case date() | time():
            return value.isoformat()
        case Decimal() | UUID():
            return str(value)
        case bytes():
            return b64encode(value).decode()
        case list() | tuple() | set() | frozenset():
            return [_convert(item) for item in cast("list[object]", value)]
        case Mapping():
            items = cast("Mapping[object, object]", value).items()
            return {_key(key): _convert(item) for key, item in items}
        case BaseException():
            return {**_type_of(value), "message": _message(value)}
        case AbortRequest() | AbortReceipt() | TaskSnapshot():
            return serialize(cast("TaskSnapshot[Any] | AbortReceipt", value))
        case _:
            return _type_of(value)


def _key(key: object) -> str:
    return key if isinstance(key, str) else str(_convert(key))


def _has_digits(number: int) -> bool:
    """Whether Python turns *number* into text: by default, it refuses 4,301 digits."""
    try:
        int.__repr__(number)
    except ValueError:
        return False
    return True


def _type_of(value: object) -> dict[str, Json]:
    return {"type": type(value).__name__}


def _message(error: BaseException) -> str:
    with suppress(Exception):  # the user's __str__() may raise
        return str(error)
    return ""
