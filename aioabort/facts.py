"""What is known of a task, in values that every JSON library can write.

Nothing that a task may return or raise makes this fail, and nothing is shown that
nobody thought of: what JSON cannot hold is told by its type alone, and tracebacks not
at all.
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

from aioabort.records import AbortReceipt, AbortRequest, TaskSnapshot

Json: TypeAlias = (
    "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
)


def facts(known: "TaskSnapshot[Any] | AbortReceipt | AbortRequest") -> dict[str, Json]:
    """Return the fields of *known* by their names; moments are in ISO 8601.

    Of a snapshot, ``result`` is a value and ``error`` an exception, as ``plain()``
    has them; one of the two is None.
    """
    if isinstance(known, TaskSnapshot):
        return _facts_of_task(known)
    return {field.name: plain(getattr(known, field.name)) for field in fields(known)}


def plain(value: object) -> Json:
    """Return *value* as JSON can hold it.

    Bytes are in Base64, sets are lists, keys are strings, and an exception is its
    ``type`` and ``message``. Of everything else only the ``type`` is told.
    """
    try:
        return _plain(value)
    except RecursionError:  # it contains itself, or nearly so
        return _type_of(value)


def _facts_of_task(snapshot: "TaskSnapshot[Any]") -> dict[str, Json]:
    result: object = snapshot.result
    has_failed = isinstance(result, BaseException)
    return {
        "task_id": snapshot.task_id,
        "state": snapshot.state,
        "is_finished": snapshot.is_finished,
        "is_aborted": snapshot.is_aborted,
        # Before the end it is the moment of some state in between.
        "date_done": plain(snapshot.date_done) if snapshot.is_finished else None,
        "result": None if has_failed else plain(result),
        "error": plain(result) if has_failed else None,
        "request": plain(snapshot.request),
    }


def _plain(value: object) -> Json:  # noqa: PLR0911 - a case each
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case date() | time():
            return value.isoformat()
        case Decimal() | UUID():
            return str(value)
        case bytes():
            return b64encode(value).decode()
        case list() | tuple() | set() | frozenset():
            return [_plain(item) for item in cast("list[object]", value)]
        case Mapping():
            items = cast("Mapping[object, object]", value).items()
            return {_key(key): _plain(item) for key, item in items}
        case BaseException():
            return {**_type_of(value), "message": _message(value)}
        case AbortRequest() | AbortReceipt():
            return facts(value)
        case _:
            return _type_of(value)


def _key(key: object) -> str:
    return key if isinstance(key, str) else str(_plain(key))


def _type_of(value: object) -> dict[str, Json]:
    return {"type": type(value).__name__}


def _message(error: BaseException) -> str:
    with suppress(Exception):  # it is somebody else's code
        return str(error)
    return ""
