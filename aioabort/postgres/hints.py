"""What a notification carries: which ids to look at. Never the truth, only a hint."""

import hashlib
import re
from collections.abc import Iterable, Iterator

from aioabort.postgres.tables import Tables

#: PostgreSQL refuses a payload of 8,000 bytes.
LONGEST_PAYLOAD = 7_900

VERSION = "1:"
EVERYTHING = VERSION + "*"

#: An id that fits into a payload, among others.
_NAMEABLE = re.compile(r"[\x01-\x2b\x2d-\x7f]{0,155}")


def request_channel(tables: Tables) -> str:
    """Return the channel that tells workers of requests."""
    return f"aioabort_req_{_suffix(tables)}"


def done_channel(tables: Tables) -> str:
    """Return the channel that tells clients of tasks that ended."""
    return f"aioabort_done_{_suffix(tables)}"


def _suffix(tables: Tables) -> str:
    # Apps with tables of their own in one database do not wake each other up.
    names = f"{tables.task}\0{tables.request}"
    return hashlib.sha256(names.encode()).hexdigest()[:8]


def encode_hints(task_ids: Iterable[str]) -> Iterator[str]:
    """Yield payloads that name *task_ids*, or one that says "look at everything"."""
    payload = VERSION
    for task_id in task_ids:
        if not _NAMEABLE.fullmatch(task_id):
            yield EVERYTHING
            return
        if len(payload) + len(task_id) + 1 > LONGEST_PAYLOAD:
            yield payload
            payload = VERSION
        payload += task_id if payload == VERSION else f",{task_id}"
    if payload != VERSION:
        yield payload


def decode_hint(payload: str) -> list[str] | None:
    """Return the ids that *payload* names, or None for "look at everything".

    Whatever cannot be understood (a later version, somebody else's message) means
    "look at everything": a hint may cost a look, but never loses one.
    """
    if payload == EVERYTHING or not payload.startswith(VERSION):
        return None
    return payload.removeprefix(VERSION).split(",")
