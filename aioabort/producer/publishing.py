"""Publishing as Celery does it, which blocks: in a thread, while the loop goes on."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from celery import Task
from celery.canvas import Signature, chord

from aioabort.exceptions import AioabortError
from aioabort.producer.canvas import apply_chord, bind

if TYPE_CHECKING:
    from aioabort.producer.client import AbortClient

#: As many as Celery's pool has connections to the broker, if it is not told otherwise.
THREADS = 10

T = TypeVar("T")

# Threads of our own: an application that waits in all of its own for something to be
# published would wait for ever.
_limiter: Final[RunVar[CapacityLimiter]] = RunVar("aioabort publishing")


async def in_thread(publish: Callable[[], T]) -> T:
    """Return what *publish* returns, from one of the threads that publish."""
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = CapacityLimiter(THREADS)
        _limiter.set(limiter)
    return await to_thread.run_sync(publish, limiter=limiter)


async def publish(
    client: "AbortClient", what: object, args: Any, kwargs: Any, options: Any
) -> Any:
    """Publish a task or a canvas, and return its result, bound to *client*.

    Raises AioabortError, and runs nothing, if tasks of the app run eagerly.
    """
    if not isinstance(what, Task | Signature):
        raise TypeError(
            "A task, a signature, a group, a chain or a chord can be sent, "
            f"not {what!r}; to send by name, use app.signature(name)"
        )
    if client.app.conf.task_always_eager:
        raise AioabortError(
            "With task_always_eager a task runs at once and in this process: "
            "there is nothing to send, abort or await"
        )
    apply = partial(apply_chord, what) if isinstance(what, chord) else what.apply_async

    def act() -> Any:
        return bind(cast("Any", apply)(args, kwargs, **options), client)

    return await in_thread(act)
