"""What users name tasks by: ids, results, groups of them, and many of all that."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeAlias

from celery.result import AsyncResult, ResultSet

from aioabort.exceptions import InvalidRequest
from aioabort.producer.canvas import Part, id_of_result, parts_of
from aioabort.producer.limits import check_task_id
from aioabort.watcher import BATCH

#: One task.
Target: TypeAlias = "str | AsyncResult[Any]"


def id_of(target: object) -> str:
    """Return the id of the one task that *target* names.

    Raises InvalidRequest if it names none or several, and AioabortError for a task that
    has run eagerly.
    """
    if isinstance(target, ResultSet):
        raise InvalidRequest(
            "A group is several tasks: gather() and as_completed() await it"
        )
    if not isinstance(target, str | AsyncResult):
        raise _no_task(target)
    if isinstance(target, AsyncResult):
        return id_of_result(target)
    check_task_id(target)
    return target


async def parts_of_all(targets: Any) -> list[Part]:
    """Return the tasks that *targets* name, in their order, with what is before them.

    Raises what ``id_of()`` raises, for the first of them that is wrong.
    """
    parts: list[Part] = []
    items = iter(each_of(targets))
    while batch := list(islice(items, BATCH)):
        parts.extend(part for item in batch for part in _parts(item))
        if len(batch) == BATCH:
            # A hundred thousand take a while, in which others are served.
            await asyncio.sleep(0)
    return parts


def each_of(targets: Any) -> Iterable[Any]:
    """Return what is to be treated one by one: *targets* may be one itself."""
    one: Iterable[Any] = (targets,)
    if isinstance(targets, str | AsyncResult | ResultSet):
        return one
    if not _are_several(targets):
        raise _no_task(targets)
    several: Iterable[Any] = targets
    return several


def _are_several(targets: object) -> bool:
    # A signature is a mapping: its keys are no ids.
    is_other = isinstance(targets, bytes | Mapping)
    return isinstance(targets, Iterable) and not is_other


def tasks_of(item: Any) -> Iterator[Any]:
    """Yield *item*, or the members of a group and of the groups in it."""
    if isinstance(item, ResultSet):
        for member in item:
            yield from tasks_of(member)
    else:
        yield item


def shaped(items: Iterable[Any], values: Iterator[Any]) -> list[Any]:
    """Return *values* in the shape of *items*, a list for each group among them."""
    return [
        shaped(item, values) if isinstance(item, ResultSet) else next(values)
        for item in items
    ]


def _parts(item: object) -> Iterable[Part]:
    if isinstance(item, AsyncResult | ResultSet):
        return parts_of(item)
    return [Part(id_of(item))]


def _no_task(target: object) -> InvalidRequest:
    return InvalidRequest(f"A task is named by its id or its result, not {target!r}")
