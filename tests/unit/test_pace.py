"""How often a client polls: what it promises, and what it does of its own accord."""

import pytest

from aioabort.poller import pace_with_notifications, pace_without_notifications

AGES = (0.0, 1.0, 5.0, 60.0, 3_600.0)


@pytest.mark.parametrize("bound", [0.05, 1.0, 60.0])
@pytest.mark.parametrize("age", AGES)
@pytest.mark.parametrize("took", [0.0, 0.1, 10.0])
def test_the_bound_is_kept(bound: float, age: float, took: float) -> None:
    """However old a wait is and however long a poll takes, the promise is kept."""
    assert 0 < pace_without_notifications(bound)(age, took) <= bound
    assert 0 < pace_with_notifications(bound)(age, took) <= 5 * bound


def test_the_young_are_polled_more_often() -> None:
    """A short task is worth more polls than one that has run for minutes."""
    assert pace_without_notifications(1.0)(0.5, 0.0) == pytest.approx(0.1)
    assert pace_without_notifications(1.0)(60.0, 0.0) == pytest.approx(0.25)
    assert pace_with_notifications(1.0)(0.5, 0.0) == pytest.approx(2.0)
    assert pace_with_notifications(1.0)(60.0, 0.0) == pytest.approx(5.0)


def test_long_polls_are_rarer() -> None:
    """A poll that takes long is followed by a pause of four times as long."""
    assert pace_without_notifications(1.0)(60.0, 0.2) == pytest.approx(0.8)
