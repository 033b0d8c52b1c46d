"""Trying again: the delays, the log, and what ends a try."""

import logging
import traceback
from typing import Any

import pytest

from aioabort.exceptions import StoreError, StoreUnavailable
from aioabort.reconnect import (
    Backoff,
    Connectivity,
    copy_for_waiter,
    run_with_reconnect,
)


class Enough(BaseException):
    """Ends a loop that would run for ever."""


def test_delays_double_up_to_the_longest() -> None:
    """The tries are counted."""
    backoff = Backoff(0.1, 0.5)
    assert [backoff.next_delay() for _ in range(5)] == [0.1, 0.2, 0.4, 0.5, 0.5]
    assert backoff.tries == 5


def test_after_a_success_delays_begin_again() -> None:
    """The next failure is the first of a new outage."""
    backoff = Backoff(0.1, 0.5)
    backoff.next_delay()
    backoff.next_delay()
    backoff.reset()
    assert backoff.tries == 0
    assert backoff.next_delay() == 0.1


def test_no_delay_is_longer_than_the_longest() -> None:
    """Not the first one either."""
    assert Backoff(1.0, 0.2).next_delay() == 0.2


def test_jitter_spreads_the_tries_of_many_processes() -> None:
    """Each delay is a part of what it would be, and they differ."""
    delays = {Backoff(1.0, 8.0, jitter=True).next_delay() for _ in range(50)}
    assert len(delays) > 10
    assert all(0 <= delay <= 1.0 for delay in delays)


def test_each_waiter_gets_an_error_of_its_own() -> None:
    """Closes: A and B raise one instance | its traceback has the frames of both."""
    cause = OSError("refused")
    error = StoreUnavailable("PostgreSQL is away")
    error.__cause__ = cause
    copies = [copy_for_waiter(error) for _ in range(2)]

    for copied in copies:
        assert type(copied) is StoreUnavailable
        assert str(copied) == "PostgreSQL is away"
        assert copied.__cause__ is cause
        with pytest.raises(StoreUnavailable) as caught:
            raise copied
        assert len(traceback.extract_tb(caught.value.__traceback__)) == 1


def test_an_outage_is_logged_once_and_its_end_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not each of the tries; the latest error stays known."""
    caplog.set_level(logging.INFO, logger="aioabort")
    connectivity = Connectivity("aioabort test", 1.0)
    connectivity.recovered()
    for number in range(3):
        connectivity.lost(StoreUnavailable(f"away {number}"))
    with pytest.raises(StoreUnavailable, match="away 2"):
        connectivity.raise_trouble()
    connectivity.recovered()
    connectivity.raise_trouble()

    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert connectivity.last_error == "away 2"


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (StoreUnavailable("away"), "away"),
        (ExceptionGroup("", [ExceptionGroup("", [StoreError("refused")])]), "refused"),
        (ValueError("a bug"), "unexpected: ValueError('a bug')"),
    ],
    ids=["error", "nested groups", "bug"],
)
async def test_an_error_does_not_end_the_work(error: Exception, trouble: str) -> None:
    """A bug does not either: without the poll, aborts would be lost."""
    events: list[Any] = []
    connectivity = Connectivity("aioabort test", 0.001)

    async def work() -> None:
        if "lost" in events:
            raise Enough
        events.append("work")
        raise error

    def on_lost() -> None:
        events.extend(["lost", str(connectivity.trouble)])

    with pytest.raises(Enough):
        await run_with_reconnect(work, connectivity, on_lost)
    assert events == ["work", "lost", trouble]
