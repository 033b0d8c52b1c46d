"""What was to come after a task that an abort has ended: it ends, too.

Celery ends the later tasks of a chain itself, but not those within a group or a chord;
who waits for one of them would wait for ever.
"""

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from typing import Any, cast

from celery import states
from celery.app.task import Context

from aioabort.exceptions import TaskAborted

#: A signature as a message has it: a dict, whether or not it is Celery's own class.
Part = Mapping[str, Any]


def end_what_follows(
    backend: Any, request: Context, error: TaskAborted
) -> Iterable[str]:
    """Store *error* as REVOKED for all that would have run after the task.

    Returns the ids of what it has ended. After a crash in the middle of it, it may be
    done again.
    """
    tasks = list(_tasks(request.chain or []))
    body: Any = request.chord
    if body and body.get("subtask_type"):
        tasks += _tasks(body)
        if not body["options"].get("task_id"):
            # Celery 5.5 cannot fail a body without an id, such as a chain.
            body["options"]["task_id"] = _id(tasks[-1]) if tasks else None
    elif body:
        # Celery fails it when the rest of the header has ended, but does not tell
        # the chord whose header this body is in.
        _return_part(backend, _context(body), error)
    for follower in map(_context, tasks):
        backend.store_result(follower.id, error, states.REVOKED, request=follower)
        _return_part(backend, follower, error)
    return list(map(_id, tasks))


def without_what_follows(request: Context) -> Context:
    """Return *request* without the rest of its chain, for Celery not to end it again."""
    rest = copy(request)
    rest.chain = None
    return rest


def _return_part(backend: Any, request: Context, error: TaskAborted) -> None:
    if request.chord:
        backend.on_chord_part_return(request, states.REVOKED, error)


def _context(task: Part) -> Context:
    options = task["options"]
    request = Context({**task, **options})
    request.id, request.group = _id(task), options.get("group_id")
    return request


def _id(task: Part) -> str:
    task_id: str = task["options"]["task_id"]
    return task_id


def _tasks(part: Any) -> Iterator[Part]:
    """Yield the tasks that *part* consists of: a signature, or a list of them."""
    if isinstance(part, list | tuple):
        for member in cast("list[Any]", part):
            yield from _tasks(member)
    elif part.get("subtask_type") in {"group", "chain"}:
        yield from _tasks(part["kwargs"]["tasks"])
    elif part.get("subtask_type") == "chord":
        for task in _tasks(part["kwargs"]["header"]):
            # Its chord is one that ends here as well, and waits for nothing.
            yield {**task, "options": {**task["options"], "chord": None}}
        yield from _tasks(part["kwargs"]["body"])
    elif part["options"].get("task_id"):
        # Celery gives all tasks of a workflow their ids before it publishes the first
        # of them: nobody can wait for one that has none.
        yield part
