"""Results to columns and back, as Celery's database backend encodes them."""

import logging
import pickle
from collections.abc import Mapping
from typing import Any, Final

from celery import states
from kombu.utils.encoding import ensure_bytes

from aioabort.celery_compat import PICKLES_RESULTS, result_meta

#: In bytes. PostgreSQL accepts no message and no value of 1 GiB.
LARGEST: Final = 2**30 - 2**20

#: In characters, as of Celery's columns.
LONGEST_NAME: Final = 155

EXTENDED: Final = ("name", "args", "kwargs", "worker", "retries", "queue")

logger: logging.Logger = logging.getLogger(__name__)


def to_columns(
    backend: Any, result: object, state: str, traceback: object, request: Any
) -> dict[str, Any]:
    """Return the values of the columns; the status is the first."""
    meta = result_meta(
        backend,
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
        # Also for states that are not final: cleanup deletes tasks that never end.
        "date_done": meta["date_done"] or backend.app.now(),
        "traceback": _as_text(traceback),
        "children": _encode_if(backend, meta.get("children")),
    }
    if backend.extended_result:
        columns |= {name: _fitting(meta.get(name)) for name in EXTENDED}
        columns["stamps"] = _encode_if(backend, _stamps(meta))
    return columns


def _fitting(value: object) -> object:
    # Celery's columns for a task name, a worker and a queue are varchar(155). If the name
    # does not fit, the result must be stored all the same.
    return value[:LONGEST_NAME] if isinstance(value, str) else value


def size_of(columns: Mapping[str, Any]) -> int:
    """Return roughly how many bytes the columns take."""
    return sum(
        len(value) for value in columns.values() if isinstance(value, bytes | str)
    )


def to_meta(backend: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Celery calls the meta of a task.

    Raises what Celery raises for a payload that it does not accept or understand, with
    a note that names the task.
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
        error.add_note(f"The stored result is that of task {row['task_id']!r}.")
        raise
    return decoded


def pending(task_id: str) -> dict[str, Any]:
    """Return the meta of a task without a row."""
    return {
        "task_id": task_id,
        "status": states.PENDING,
        "result": None,
        "traceback": None,
        "date_done": None,
        "children": None,
    }


def encode_group(backend: Any, result: Any) -> bytes | None:
    """Return the value of the ``result`` column of a group."""
    return _encode(
        backend, result if PICKLES_RESULTS else backend.prepare_value(result)
    )


def decode_result(backend: Any, payload: bytes | None) -> Any:
    """Return the value in a ``result`` column; an older Celery has pickled it."""
    if payload is None:
        return None
    if PICKLES_RESULTS:
        return pickle.loads(payload)  # noqa: S301 - as Celery does
    try:
        return backend.decode(payload)
    except Exception:
        # Celery has the same rule: every pickle that it wrote begins with this byte.
        if payload[:1] != b"\x80":
            raise
        logger.warning(
            "A result is not in the configured result_serializer; it is unpickled, as "
            "an older Celery may have stored it",
            exc_info=True,
        )
        return pickle.loads(payload)  # noqa: S301 - as Celery does


def _encode(backend: Any, value: object) -> bytes | None:
    if PICKLES_RESULTS:
        return None if value is None else pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    encoded: bytes = ensure_bytes(backend.encode(value))
    return encoded


def _encode_if(backend: Any, value: object) -> bytes | None:
    return ensure_bytes(backend.encode(value)) if value else None


def _as_text(traceback: object) -> str | None:
    """Return the traceback with what PostgreSQL's text cannot hold escaped."""
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
