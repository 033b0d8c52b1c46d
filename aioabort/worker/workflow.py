"""The end of what was to run after an aborted task.

Celery ends the later tasks of a chain itself, but not tasks within a group or chord in
that chain. Their waiters would wait for ever.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from typing import Any, cast

from celery import states
from celery.app.task import Context
from celery.exceptions import Ignore

from aioabort.exceptions import TaskAborted

#: A signature as a message carries it: a dict, whether or not of Celery's own class.
SignatureDict = Mapping[str, Any]


class AbortHonoured(Ignore):
    """The task stopped for its abort, and its final state is stored already.

    A child raises it to Celery, and the main process recognizes it.
    """


def end_what_follows(
    backend: Any,
    context: Context,
    error: TaskAborted,
    store: Callable[[Context], bool],
) -> None:
    """End all tasks that would have run after this one.

    *store* stores *error* as REVOKED for one of them, and returns False if it has a
    result. A second call does no harm: after a crash in the middle, the redelivery calls
    this again.
    """
    followers = list(_tasks(context.chain or []))
    body: Any = context.chord
    if body and body.get("subtask_type"):
        followers += _tasks(body)
        if not body["options"].get("task_id"):
            # Celery 5.5 cannot fail a body without an id, such as a chain.
            body["options"]["task_id"] = _id(followers[-1]) if followers else None
    elif body:
        # When the rest of the header has ended, Celery fails this body. If the body is
        # in the header of another chord, Celery does not report its end to that chord.
        _return_part(backend, _context(body), error)
    for follower in map(_context, followers):
        if store(follower):
            _return_part(backend, follower, error)


def ids_of_followers(context: Context) -> list[str]:
    """Return the ids of all tasks that do not run if this one ends without a value."""
    ids: dict[str, None] = {}
    waiting: list[Any] = [context.chain, context.chord, context.callbacks]
    while waiting:
        for task in _tasks(waiting.pop() or []):
            if _id(task) not in ids:
                ids[_id(task)] = None
                waiting.append(task["options"].get("chord"))
    return list(ids)


def without_what_follows(context: Context) -> Context:
    """Return *context* without the rest of its chain, so that Celery does not end it too."""
    alone = copy(context)
    alone.chain = None
    return alone


def _return_part(backend: Any, context: Context, error: TaskAborted) -> None:
    if context.chord:
        backend.on_chord_part_return(context, states.REVOKED, error)


def _context(task: SignatureDict) -> Context:
    options = task["options"]
    context = Context({**task, **options})
    context.id, context.group = _id(task), options.get("group_id")
    return context


def _id(task: SignatureDict) -> str:
    task_id: str = task["options"]["task_id"]
    return task_id


def _tasks(signature: Any) -> Iterator[SignatureDict]:
    """Yield the tasks of a signature, or of a list of signatures."""
    if isinstance(signature, list | tuple):
        for member in cast("list[Any]", signature):
            yield from _tasks(member)
    elif signature.get("subtask_type") in {"group", "chain"}:
        yield from _tasks(signature["kwargs"]["tasks"])
    elif signature.get("subtask_type") == "chord":
        for task in _tasks(signature["kwargs"]["header"]):
            # The body of its chord ends here as well, and waits for no part.
            yield {**task, "options": {**task["options"], "chord": None}}
        yield from _tasks(signature["kwargs"]["body"])
    elif signature["options"].get("task_id"):
        # Before Celery publishes the first task of a workflow, it gives all of them ids.
        # A signature without an id has no waiter.
        yield signature
