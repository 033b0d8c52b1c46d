"""Results of groups, chains and chords: which tasks they consist of."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from celery.result import EagerResult, GroupResult, ResultBase, ResultSet

from aioabort.exceptions import AioabortError
from aioabort.producer.limits import check_task_id
from aioabort.producer.result import AbortableAsyncResult

if TYPE_CHECKING:
    from aioabort.producer.client import AbortClient


class Part(NamedTuple):
    """A task of a canvas, after the tasks that have to end before it begins."""

    task_id: str
    before: tuple[str, ...] = ()


def parts_of(result: Any) -> Iterator[Part]:
    """Yield what *result* stands for: its task, or each member of a group.

    Raises what ``id_of_result()`` raises, for any of them.
    """
    before = tuple(_before(result))
    if not isinstance(result, ResultSet):
        yield Part(id_of_result(result), before)
        return
    for member in result:
        for part in parts_of(member):
            yield Part(part.task_id, before + part.before)


def _before(result: ResultBase) -> Iterable[str]:
    """Return the ids of all that comes before *result*, first things first."""
    parents: list[Any] = []
    node = result.parent
    while node is not None:
        parents.append(node)
        node = node.parent
    return dict.fromkeys(
        task_id for parent in reversed(parents) for task_id in _own_ids(parent)
    )


def _own_ids(result: Any) -> Iterator[str]:
    if not isinstance(result, ResultSet):
        yield id_of_result(result)
        return
    for member in result:
        yield from _before(member)
        yield from _own_ids(member)


def apply_chord(canvas: Any, *args: Any, **options: Any) -> Any:
    """Publish *canvas* as its ``apply_async()`` does; return the whole of its result.

    Celery hangs the header's result under the last task of the body, and what the body
    consists of besides is forgotten.
    """
    # A copy, of which only this call knows: what is remembered is not the caller's.
    canvas = canvas.clone()
    run = canvas.run
    bodies: list[Any] = []

    def remember(header: Any, body: Any, *args: Any, **options: Any) -> Any:
        bodies.append(body)
        return run(header, body, *args, **options)

    canvas.run = remember
    result: Any = canvas.apply_async(*args, **options)
    [body] = bodies
    # Its tasks have their ids by now; to freeze them again changes none.
    whole = first = body.freeze(result.id)
    while first.parent is not None:
        first = first.parent
    first.parent = result.parent
    return whole


def bind(result: ResultBase, client: "AbortClient") -> Any:
    """Return a copy of *result*, with all that belongs to it, of results of *client*.

    Raises AioabortError if it consists of tasks that have run eagerly.
    """
    last = node = _bind_node(result, client)
    # Not by recursion: a chain may be longer than Python's stack is high.
    while (parent := result.parent) is not None:
        node.parent = _bind_node(parent, client)
        result, node = parent, node.parent
    return last


def id_of_result(result: Any) -> str:
    """Return the id of the result's task.

    Raises InvalidRequest for one that cannot be, and AioabortError for a task that has
    run eagerly.
    """
    if isinstance(result, EagerResult):
        raise AioabortError(
            f"Task {result.id!r} has run already: with task_always_eager there is "
            "nothing to abort or await"
        )
    check_task_id(result.id)
    return str(result.id)


def _bind_node(result: Any, client: "AbortClient") -> Any:
    if isinstance(result, GroupResult):
        members = [bind(member, client) for member in result]
        return client.app.GroupResult(result.id, members)
    bound: AbortableAsyncResult[Any] = AbortableAsyncResult(
        id_of_result(result), app=client.app, client=client
    )
    bound.ignored = result.ignored
    return bound
