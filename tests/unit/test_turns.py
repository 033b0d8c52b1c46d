"""Who may use a shared connection next."""

import asyncio

from aioabort.postgres.turns import Turns


async def test_urgent_callers_come_first() -> None:
    """A poll waits for the statement that runs, and for none that waits already."""
    turns = Turns()
    order: list[str] = []

    async def use(name: str, *, is_urgent: bool = False) -> None:
        await turns.acquire(is_urgent=is_urgent)
        order.append(name)
        turns.release()

    await turns.acquire(is_urgent=False)
    async with asyncio.TaskGroup() as group:
        for name in ("store 1", "store 2"):
            group.create_task(use(name))
        for name in ("poll 1", "poll 2"):
            group.create_task(use(name, is_urgent=True))
        await asyncio.sleep(0)
        turns.release()
    assert order == ["poll 1", "poll 2", "store 1", "store 2"]
    await use("later")


async def test_a_cancelled_caller_is_passed_over() -> None:
    """One cancellation comes before the turn, the other together with it.

    first and second wait | first cancelled | released: second's turn, and cancelled |
    third's turn
    """
    turns = Turns()
    await turns.acquire(is_urgent=False)
    first, second, third = [
        asyncio.create_task(turns.acquire(is_urgent=False)) for _ in range(3)
    ]
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    turns.release()
    second.cancel()
    await asyncio.wait_for(third, 5)
    assert first.cancelled()
    assert second.cancelled()
    turns.release()
    await asyncio.wait_for(turns.acquire(is_urgent=False), 5)
