"""What comes in: ids, queries, and bodies of a bounded size."""

import json
import re
from typing import Any, cast

from starlette.requests import ClientDisconnect, Request

from aioabort.producer.limits import check_task_id
from aioabort.web.refusals import Refusal, refusals

#: Bytes of a body; a reason has at most 4,096.
MOST_BYTES = 16_384

MOST_REQUESTS = 1_000


def checked_id(task_id: str) -> str:
    """Return *task_id*, or raise a Refusal if no task can have it."""
    with refusals():
        check_task_id(task_id)
    return task_id


async def read_object(request: Request, fields: frozenset[str]) -> dict[str, Any]:
    """Return those of *fields* that the body, a JSON object or nothing, gives values.

    Raises a Refusal for everything else, and for other fields: they may be misspelt.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0]
    # Also of an empty body: a form or an image cannot send this to another site.
    if media_type.strip().lower() != "application/json":
        raise Refusal(415, "The body must be application/json")
    try:
        body: object = json.loads(await _read(request) or b"{}")
    except (ValueError, RecursionError):
        raise Refusal(400, "The body is no valid JSON") from None
    if not isinstance(body, dict):
        raise Refusal(422, "The body must be a JSON object")
    given = cast("dict[str, Any]", body)
    if unknown := given.keys() - fields:
        names = ", ".join(sorted(fields))
        raise Refusal(422, f"No such field: {min(unknown)[:40]!r}; there are {names}")
    return {name: value for name, value in given.items() if value is not None}


async def _read(request: Request) -> bytes:
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                raise Refusal(413, f"The body has more than {MOST_BYTES} bytes")
    except ClientDisconnect:
        raise Refusal(400, "The body ended too early") from None
    return bytes(body)


def limit_of(request: Request) -> int:
    """Return how many rows are asked for, 100 by default."""
    text = request.query_params.get("limit", "100")
    if re.fullmatch(r"[0-9]{1,4}", text) and 1 <= int(text) <= MOST_REQUESTS:
        return int(text)
    raise Refusal(422, f"limit is a number from 1 to {MOST_REQUESTS}")


def flag_of(request: Request, name: str) -> bool:
    """Return whether ``name=true`` is asked for."""
    text = request.query_params.get(name, "false")
    if text not in {"true", "false"}:
        raise Refusal(422, f"{name} is true or false")
    return text == "true"
