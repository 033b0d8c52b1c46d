"""Task ids, query parameters and JSON bodies of HTTP requests, checked."""

import json
import re
from typing import Any, cast

from starlette.requests import ClientDisconnect, Request

from aioabort.client.validation import check_task_id
from aioabort.web.responses import HTTPError, http_errors

#: Largest body in bytes. A reason has at most 4,096.
MAX_BODY = 16_384

MAX_LIMIT = 1_000


def parse_task_id(task_id: str) -> str:
    """Return *task_id*; raise HTTPError 422 if no task can have this id."""
    with http_errors():
        check_task_id(task_id)
    return task_id


async def read_json_object(
    http_request: Request, fields: frozenset[str]
) -> dict[str, Any]:
    """Return the body, a JSON object or nothing, without its null values.

    Raises HTTPError for any other body, and for a field that is not in *fields*,
    because its name may be misspelt.
    """
    media_type = http_request.headers.get("content-type", "").partition(";")[0]
    # Required of an empty body, too: a form or an image on another site cannot send
    # this type.
    if media_type.strip().lower() != "application/json":
        raise HTTPError(415, "The body must be application/json")
    try:
        body: object = json.loads(await _read_body(http_request) or b"{}")
    except (ValueError, RecursionError):
        raise HTTPError(400, "The body is not valid JSON") from None
    if not isinstance(body, dict):
        raise HTTPError(422, "The body must be a JSON object")
    values = cast("dict[str, Any]", body)
    if unknown := values.keys() - fields:
        names = ", ".join(sorted(fields))
        raise HTTPError(
            422, f"Unknown field {min(unknown)[:40]!r}; the fields are {names}"
        )
    return {name: value for name, value in values.items() if value is not None}


async def _read_body(http_request: Request) -> bytes:
    body = bytearray()
    try:
        async for chunk in http_request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise HTTPError(413, f"The body has more than {MAX_BODY} bytes")
    except ClientDisconnect:
        raise HTTPError(400, "The body ended too early") from None
    return bytes(body)


def parse_limit(http_request: Request) -> int:
    """Return the query parameter ``limit``, 100 by default."""
    text = http_request.query_params.get("limit", "100")
    if re.fullmatch(r"[0-9]{1,4}", text) and 1 <= int(text) <= MAX_LIMIT:
        return int(text)
    raise HTTPError(422, f"limit must be a number from 1 to {MAX_LIMIT}")


def parse_flag(http_request: Request, name: str) -> bool:
    """Return the query parameter *name*, False by default."""
    text = http_request.query_params.get(name, "false")
    if text not in {"true", "false"}:
        raise HTTPError(422, f"{name} must be true or false")
    return text == "true"
