"""What was to come after a task that an abort has ended: it ends, too.

Celery ends the later tasks of a chain itself, but not those within a group or a chord;
who waits for one of them would wait for ever.
"""

from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any, cast

from celery import states
from celery.app.task import Context

from aioabort.exceptions import TaskAborted

#: A signature as a message has it: a dict, whether or not it is Celery's own class.
Part = Mapping[str, Any]


def end_what_follows(backend: Any, request: Context, error: TaskAborted) -> None:
    """Store *error* as REVOKED for all that would have run after the task.

    After a crash in the middle of it, it may be done again.
    """
    _end_all(backend, request.chain or [], error)
    body: Any = request.chord
    if body and body.get("subtask_type"):
        _end_all(backend, body, error)
        if not body["options"].get("task_id"):
            # Celery 5.5 cannot fail a body without an id, such as a chain.
            ids = [task["options"].get("task_id") for task in _tasks(body)]
            body["options"]["task_id"] = next(reversed(ids), None)
    elif body:
        # Celery fails it when the rest of the header has ended, but does not tell
        # the chord whose header this body is in.
        _return_part(backend, _context(body), error)


def without_what_follows(request: Context) -> Context:
    """Return *request* without the rest of its chain, for Celery not to end it again."""
    rest = copy(request)
    rest.chain = None
    return rest


def _end_all(backend: Any, part: object, error: TaskAborted) -> None:
    for task in _tasks(part):
        request = _context(task)
        if request.id:
            backend.store_result(request.id, error, states.REVOKED, request=request)
            _return_part(backend, request, error)


def _return_part(backend: Any, request: Context, error: TaskAborted) -> None:
    if request.chord:
        backend.on_chord_part_return(request, states.REVOKED, error)


def _context(task: Part) -> Context:
    options = task["options"]
    request = Context({**task, **options})
    request.id, request.group = options.get("task_id"), options.get("group_id")
    return request


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
    else:
        yield part
