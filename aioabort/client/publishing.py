"""Publishing tasks with Celery's blocking code, in threads beside the event loop."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar

from celery import Celery, Task
from celery.canvas import Signature, chord
from celery.result import AsyncResult, GroupResult

from aioabort.client.targets import id_of
from aioabort.concurrency.blocking import run_blocking
from aioabort.exceptions import AioabortError

#: Makes a result of a task id.
ResultFactory: TypeAlias = "Callable[[str], AsyncResult[Any]]"

T = TypeVar("T")


async def publish(
    what: object,
    args: Any,
    kwargs: Any,
    options: Any,
    *,
    app: Celery,
    make_result: ResultFactory,
) -> Any:
    """Publish a task or a canvas, and return its result, made by *make_result*.

    Raises AioabortError, and runs nothing, if tasks of *app* run eagerly.
    """
    if not isinstance(what, Task | Signature):
        raise TypeError(
            "A task, a signature, a group, a chain or a chord can be sent, "
            f"not {what!r}; to send by name, use app.signature(name)"
        )
    if app.conf.task_always_eager:
        raise AioabortError(
            "With task_always_eager a task runs at once and in this process: "
            "there is nothing to send, abort or await"
        )
    apply: Any = what.apply_async
    if isinstance(what, chord):
        apply = partial(_apply_chord, what)

    def apply_and_convert() -> Any:
        return _convert(apply(args, kwargs, **options), app, make_result)

    return await publish_in_thread(apply_and_convert)


async def publish_in_thread(publish: Callable[[], T]) -> T:
    """Return the result of *publish*, called beside the event loop."""
    return await run_blocking(publish, "aioabort-publishing")


def _apply_chord(canvas: Any, *args: Any, **options: Any) -> Any:
    """Publish *canvas* as its ``apply_async()`` does; return its complete result.

    Celery returns the last task of the body with the header as its parent, and drops
    the other tasks of the body.
    """
    # The attribute set below must not stay on the caller's canvas.
    canvas = canvas.clone()
    run = canvas.run
    bodies: list[Any] = []

    def run_and_keep_body(header: Any, body: Any, *args: Any, **options: Any) -> Any:
        bodies.append(body)
        return run(header, body, *args, **options)

    canvas.run = run_and_keep_body
    result: Any = canvas.apply_async(*args, **options)
    [body] = bodies
    # The tasks of the body have ids by now, and freeze() keeps them.
    last = first = body.freeze(result.id)
    while first.parent is not None:
        first = first.parent
    first.parent = result.parent
    return last


def _convert(result: Any, app: Celery, make_result: ResultFactory) -> Any:
    """Return a copy of *result* and of all results in it, made by *make_result*.

    Raises AioabortError if a task in it has run eagerly.
    """
    last = node = _convert_node(result, app, make_result)
    # No recursion: a chain may be longer than Python's stack allows.
    while (parent := result.parent) is not None:
        node.parent = _convert_node(parent, app, make_result)
        result, node = parent, node.parent
    return last


def _convert_node(result: Any, app: Celery, make_result: ResultFactory) -> Any:
    if isinstance(result, GroupResult):
        members = [_convert(member, app, make_result) for member in result]
        return app.GroupResult(result.id, members)
    converted = make_result(id_of(result))
    converted.ignored = result.ignored
    return converted
