"""The items of a batch for which PostgreSQL refuses or delays a statement."""

from collections.abc import Sequence

import pytest
from anyio import sleep

from aioabort.exceptions import StoreBusy, StoreError, StoreUnavailable
from aioabort.halving import in_parts


class Statement:
    """Fails with *error* for every part that has one of the *odd* items."""

    def __init__(self, odd: set[int], error: StoreError) -> None:
        self.odd = odd
        self.error = error
        self.calls = 0

    async def __call__(self, part: Sequence[int]) -> list[int]:
        self.calls += 1
        if self.odd.intersection(part):
            raise self.error
        return list(part)


async def test_only_the_culprits_get_the_error() -> None:
    """All other items get their result, each once."""
    statement = Statement({3, 77}, StoreError("refused"))
    answers = await in_parts(range(100), statement)

    assert answers.failed == [(3, statement.error), (77, statement.error)]
    found = sorted(item for part in answers.results for item in part)
    assert found == sorted(set(range(100)) - {3, 77})
    # Halves, not one by one.
    assert statement.calls < 35


async def test_a_batch_that_succeeds_is_one_call() -> None:
    """The way without trouble costs nothing."""
    statement = Statement(set(), StoreError("refused"))
    assert (await in_parts([1, 2], statement)).results == [[1, 2]]
    assert statement.calls == 1


async def test_a_refusal_of_every_item_is_not_split() -> None:
    """A missing right concerns all: two calls, and the error for the whole batch."""
    calls = 0

    async def refuse(part: Sequence[int]) -> None:
        nonlocal calls
        calls += 1
        raise StoreError(f"permission denied ({len(part)})")

    with pytest.raises(StoreError, match="permission denied"):
        await in_parts(range(1_000), refuse)
    assert calls == 2


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreBusy("busy")])
async def test_an_outage_is_not_split(error: StoreError) -> None:
    """The whole batch is to be tried again later."""
    statement = Statement({1}, error)
    with pytest.raises(StoreUnavailable, match=str(error)):
        await in_parts([1, 2], statement)
    assert statement.calls == 1


async def test_a_locked_row_is_found_like_a_refused_one() -> None:
    """With *while_busy*, the others do not wait for it."""
    statement = Statement({2}, StoreBusy("locked"))
    answers = await in_parts([1, 2, 3, 4], statement, while_busy=60.0)

    assert answers.failed == [(2, statement.error)]
    assert answers.results == [[1], [3, 4]]


async def test_many_locked_rows_are_not_split_for_ever() -> None:
    """When the time is over, parts count as failed without further calls."""
    statement = Statement(set(range(1_000)), StoreBusy("locked"))
    answers = await in_parts(range(1_000), statement, while_busy=-1.0)

    assert [item for item, _ in answers.failed] == list(range(1_000))
    # The batch, and the same without items.
    assert statement.calls == 2


async def test_the_first_call_takes_no_time_from_the_others() -> None:
    """A call that waits for a lock for long is followed by calls for its halves.

    batch: waits longer than *while_busy*, fails | halves: the one without the lock succeeds
    """
    statement = Statement({2}, StoreBusy("locked"))

    async def run(part: Sequence[int]) -> list[int]:
        if len(part) > 1:
            await sleep(0.3)
        return await statement(part)

    answers = await in_parts([1, 2], run, while_busy=0.2)

    assert answers.failed == [(2, statement.error)]
    assert answers.results == [[1]]
