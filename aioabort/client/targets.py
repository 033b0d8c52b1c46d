"""What callers pass for tasks: an id, a result, a group, or an iterable of these."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from celery import Celery
from celery.result import AsyncResult, EagerResult, ResultBase, ResultSet

from aioabort.client.validation import check_task_id
from aioabort.exceptions import AioabortError, InvalidRequest
from aioabort.poller import BATCH_SIZE


class AbortTarget(NamedTuple):
    """A task to abort, and the tasks that have to end before it begins."""

    task_id: str
    before: tuple[str, ...] = ()


def id_of(target: object) -> str:
    """Return the id of one task.

    Raises InvalidRequest for a group and for anything else that is no task, and
    AioabortError for a task that has run eagerly.
    """
    if isinstance(target, ResultSet):
        raise InvalidRequest(
            "A group is several tasks: gather() and as_completed() await it"
        )
    if isinstance(target, EagerResult):
        raise AioabortError(
            f"Task {target.id!r} has run already: with task_always_eager there is "
            "nothing to abort or await"
        )
    if not isinstance(target, str | AsyncResult):
        raise _not_a_task(target)
    task_id: Any = target if isinstance(target, str) else target.id
    check_task_id(task_id)
    return str(task_id)


def each_of(targets: Any) -> Iterable[Any]:
    """Return the items of an iterable; an id, a result or a group is one item.

    Raises InvalidRequest for anything else.
    """
    one: Iterable[Any] = (targets,)
    if isinstance(targets, str | AsyncResult | ResultSet):
        return one
    if not _are_many(targets):
        raise _not_a_task(targets)
    many: Iterable[Any] = targets
    return many


def app_of(targets: Any) -> Celery | None:
    """Return the app of the first result in *targets*, or None without a result."""
    # The abort would find an iterator used up: its caller has to pass the app.
    items = () if isinstance(targets, Iterator) else each_of(targets)
    for item in items:
        if isinstance(item, AsyncResult | ResultSet):
            return item.app
    return None


def tasks_of(item: Any) -> Iterator[Any]:
    """Yield *item*, or the members of a group and of the groups in it."""
    if isinstance(item, ResultSet):
        for member in item:
            yield from tasks_of(member)
    else:
        yield item


def regroup(items: Iterable[Any], values: Iterator[Any]) -> list[Any]:
    """Return *values* as a list, with one list for each group in *items*."""
    return [
        regroup(item, values) if isinstance(item, ResultSet) else next(values)
        for item in items
    ]


async def abort_targets(targets: object) -> list[AbortTarget]:
    """Return all tasks in *targets*, in order, with the tasks that come before them.

    Raises what ``id_of()`` raises, for the first item that is wrong.
    """
    found: list[AbortTarget] = []
    items = iter(each_of(targets))
    while batch := list(islice(items, BATCH_SIZE)):
        found.extend(target for item in batch for target in _abort_targets_of(item))
        if len(batch) == BATCH_SIZE:
            # A hundred thousand ids would block the event loop for long.
            await asyncio.sleep(0)
    return found


def _abort_targets_of(item: Any) -> Iterator[AbortTarget]:
    before = tuple(_ids_before(item)) if isinstance(item, ResultBase) else ()
    if not isinstance(item, ResultSet):
        yield AbortTarget(id_of(item), before)
        return
    for member in item:
        for target in _abort_targets_of(member):
            yield AbortTarget(target.task_id, before + target.before)


def _ids_before(result: Any) -> Iterable[str]:
    """Return the ids of all tasks before *result* in its canvas, the first task first."""
    parents: list[Any] = []
    while (result := result.parent) is not None:
        parents.append(result)
    return dict.fromkeys(
        task_id for parent in reversed(parents) for task_id in _ids_in(parent)
    )


def _ids_in(result: Any) -> Iterator[str]:
    if not isinstance(result, ResultSet):
        yield id_of(result)
        return
    for member in result:
        yield from _ids_before(member)
        yield from _ids_in(member)


def _are_many(targets: object) -> bool:
    # A signature is a mapping, and its keys are no ids.
    is_other = isinstance(targets, bytes | Mapping)
    return isinstance(targets, Iterable) and not is_other


def _not_a_task(target: object) -> InvalidRequest:
    return InvalidRequest(f"A task is named by its id or its result, not {target!r}")
