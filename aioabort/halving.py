"""Finding the items of a batch for which PostgreSQL refuses or delays a statement.

A batch with one odd item (an id that the database cannot hold, a row that is locked)
fails as a whole. Run again for its halves, the statement fails for that item alone.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Generic, TypeVar

from aioabort.exceptions import StoreBusy, StoreError, StoreUnavailable

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Answers(Generic[T, R]):
    """What the statement returned for each part, and the items for which it failed."""

    results: list[R] = field(default_factory=list)
    failed: list[tuple[T, StoreError]] = field(default_factory=list)


async def in_parts(
    items: Sequence[T],
    run: Callable[[Sequence[T]], Awaitable[R]],
    *,
    while_busy: float | None = None,
) -> Answers[T, R]:
    """Call *run* with *items*; with their halves, and so on, if PostgreSQL refuses.

    With *while_busy*, also if PostgreSQL is busy. So many seconds after the first call,
    the items that *run* has still failed for count as failed, without further calls.

    Raises the error of *run* if it fails without items too: the reason is none of them.
    """
    answers: Answers[T, R] = Answers()
    deadline = 0.0

    async def attempt(part: Sequence[T]) -> StoreError | None:
        try:
            answers.results.append(await run(part))
        except StoreUnavailable as error:
            if while_busy is None or not isinstance(error, StoreBusy):
                raise
            return error
        except StoreError as error:
            return error
        return None

    async def split(part: Sequence[T], error: StoreError) -> None:
        is_late = while_busy is not None and monotonic() > deadline
        if len(part) == 1 or (is_late and isinstance(error, StoreBusy)):
            answers.failed.extend((item, error) for item in part)
            return
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]):
            if problem := await attempt(half):
                await split(half, problem)

    if problem := await attempt(items):
        await run(())
        # From here on, not from the first call, which may have taken longer than that:
        # the items that are not in the way must not wait for it again.
        deadline = monotonic() + (while_busy or 0.0)
        await split(items, problem)
    return answers


async def failures(
    items: Sequence[T],
    run: Callable[[Sequence[T]], Awaitable[object]],
    *,
    while_busy: float,
) -> list[tuple[T, StoreError]]:
    """Call *run* as ``in_parts()`` does; return the items for which it failed.

    These are all items if the reason is none of them. Raises StoreUnavailable, but not
    StoreBusy.
    """
    try:
        return (await in_parts(items, run, while_busy=while_busy)).failed
    except StoreError as error:
        if isinstance(error, StoreUnavailable) and not isinstance(error, StoreBusy):
            raise
        return [(item, error) for item in items]
