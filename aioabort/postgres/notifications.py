"""The payload of a notification: the ids of tasks to query.

A notification only says when to query. What is true stands in the tables.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator

from aioabort.postgres.tables import Tables

#: PostgreSQL refuses a payload of 8,000 bytes.
LONGEST_PAYLOAD = 7_900

VERSION = "1:"
#: The payload that asks the receiver to query all its tasks.
EVERYTHING = VERSION + "*"

#: An id that can be part of a payload: ASCII, short, and without a comma.
_NAMEABLE = re.compile(r"[\x01-\x2b\x2d-\x7f]{0,155}")


def request_channel(tables: Tables) -> str:
    """Return the channel that notifies workers of abort requests."""
    return f"aioabort_req_{_suffix(tables)}"


def done_channel(tables: Tables) -> str:
    """Return the channel that notifies clients of tasks that have ended."""
    return f"aioabort_done_{_suffix(tables)}"


def _suffix(tables: Tables) -> str:
    # Programs share a channel if they share the request table, whatever their
    # search_path. Two apps with different tables in one database do not wake each other.
    return hashlib.sha256(tables.request.encode()).hexdigest()[:8]


def encode_notifications(task_ids: Iterable[str]) -> Iterator[str]:
    """Yield payloads with *task_ids*; the last is EVERYTHING if an id does not fit."""
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


def decode_notification(payload: str) -> list[str] | None:
    """Return the ids in *payload*, or None if the receiver has to query all its tasks.

    A payload of a later version or of another program costs one query of all tasks. To
    ignore it could lose an abort.
    """
    if payload == EVERYTHING or not payload.startswith(VERSION):
        return None
    return payload.removeprefix(VERSION).split(",")
