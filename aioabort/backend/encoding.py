"""From a task's end to the columns of its row and back, as Celery's database backend."""

import logging
import pickle
from collections.abc import Mapping
from typing import Any, Final

import celery
from celery import states
from kombu.utils.encoding import ensure_bytes

#: Before 5.7, Celery pickled results whatever the serializer.
PICKLES: Final = celery.VERSION < (5, 7)

#: Bytes; PostgreSQL takes no message of 1 GiB, nor keeps such a value.
LARGEST: Final = 2**30 - 2**20

EXTENDED: Final = ("name", "args", "kwargs", "worker", "retries", "queue")

logger: logging.Logger = logging.getLogger(__name__)


def to_columns(
    backend: Any, result: object, state: str, traceback: object, request: Any
) -> dict[str, Any]:
    """Return the values of the columns; the status is the first."""
    meta: dict[str, Any] = backend._get_result_meta(
        result=_encode(backend, result),
        state=state,
        traceback=traceback,
        request=request,
        format_date=False,
        encode=True,
    )
    columns: dict[str, Any] = {
        "status": state,
        "result": meta["result"],
        # For the states before the end, too: cleanup finds tasks that never end.
        "date_done": meta["date_done"] or backend.app.now(),
        "traceback": _as_text(traceback),
        "children": _encode_if(backend, meta.get("children")),
    }
    if backend.extended_result:
        columns |= {name: meta.get(name) for name in EXTENDED}
        columns["stamps"] = _encode_if(backend, _stamps(meta))
    return columns


def size_of(columns: Mapping[str, Any]) -> int:
    """Return how many bytes the columns take, about."""
    return sum(
        len(value) for value in columns.values() if isinstance(value, bytes | str)
    )


def to_meta(backend: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Celery calls the meta of a task.

    Raises what Celery raises for a payload that it does not accept or understand; a note
    says whose it is.
    """
    meta = {name: row.get(name) for name in ("task_id", "status", "traceback")}
    meta["date_done"] = row.get("date_done")
    try:
        meta["result"] = decode_result(backend, row.get("result"))
        meta["children"] = backend.decode(row.get("children"))
        if backend.extended_result:
            meta |= {name: row.get(name) for name in EXTENDED}
            meta["args"] = backend.decode(row.get("args"))
            meta["kwargs"] = backend.decode(row.get("kwargs"))
            meta |= _unstamp(backend, row.get("stamps"))
        decoded: dict[str, Any] = backend.meta_from_decoded(meta)
    except Exception as error:
        error.add_note(f"This is about the stored result of task {row['task_id']!r}.")
        raise
    return decoded


def pending(task_id: str) -> dict[str, Any]:
    """Return the meta of a task that nothing is stored of."""
    return {
        "task_id": task_id,
        "status": states.PENDING,
        "result": None,
        "traceback": None,
        "date_done": None,
        "children": None,
    }


def encode_group(backend: Any, result: Any) -> bytes | None:
    """Return a group as its column has it."""
    return _encode(backend, result if PICKLES else backend.prepare_value(result))


def decode_result(backend: Any, payload: bytes | None) -> Any:
    """Return the value of a ``result`` column, which an older Celery has pickled."""
    if payload is None:
        return None
    if PICKLES:
        return pickle.loads(payload)  # noqa: S301 - as Celery does
    try:
        return backend.decode(payload)
    except Exception:
        # Celery's own rule: every pickle that it has written begins with this.
        if payload[:1] != b"\x80":
            raise
        logger.warning(
            "A result is not in the configured result_serializer; it is taken for a "
            "pickle of an older Celery",
            exc_info=True,
        )
        return pickle.loads(payload)  # noqa: S301 - as Celery does


def _encode(backend: Any, value: object) -> bytes | None:
    if PICKLES:
        return None if value is None else pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    encoded: bytes = ensure_bytes(backend.encode(value))
    return encoded


def _encode_if(backend: Any, value: object) -> bytes | None:
    return ensure_bytes(backend.encode(value)) if value else None


def _as_text(traceback: object) -> str | None:
    """Return the traceback without what PostgreSQL cannot hold in a text."""
    if traceback is None:
        return None
    text = str(traceback).encode(errors="backslashreplace").decode()
    return text.replace("\0", "\\x00")


def _stamps(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    headers = meta.get("stamped_headers")
    if not headers:
        return None
    stamps = {name: meta[name] for name in headers if name in meta}
    return {"stamped_headers": headers, "stamps": stamps}


def _unstamp(backend: Any, payload: bytes | None) -> dict[str, Any]:
    if payload is None:
        return {}
    info = backend.decode(payload)
    return {"stamped_headers": info["stamped_headers"], **info["stamps"]}
