"""Cases for fuzzing: drawn by Hypothesis, and mutated from what is usual."""

import functools
import random
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

#: Of all fuzz tests together.
CASES = {"full": 100_000, "quick": 10_000}

#: Hypothesis finds the strange cases, and mutations of what is usual are a hundred times
#: as fast.
DRAWN = 0.03

#: How many of a case's parts are.
MUTATED = 0.3

#: Seconds that one case may take on a busy machine.
STALL = 2.0

T = TypeVar("T")
Check = Callable[[T], None]


def cases(config: pytest.Config) -> int:
    """Return how many cases all fuzz tests together have."""
    return CASES["quick" if config.getoption("quick") else "full"]


def check_cases(
    check: Check[T],
    count: int,
    strategy: st.SearchStrategy[T],
    corpus: Sequence[T] = (),
) -> None:
    """Check *count* cases, the same ones each time."""
    drawn = round(count * DRAWN) if corpus else count
    chance = random.Random(check.__name__)
    for number in range(count - drawn):
        value = mutated(chance.choice(corpus), chance)
        start = perf_counter()
        try:
            check(value)
        except BaseException as error:
            error.add_note(f"case {number}: {value!r}"[:2_000])
            raise
        assert perf_counter() - start < STALL, f"case {number}: {value!r}"[:2_000]
    by_hypothesis = settings(
        max_examples=drawn,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    by_hypothesis(given(strategy)(check))()


def fuzzed(
    share: float, strategy: st.SearchStrategy[T], corpus: Sequence[T] = ()
) -> Callable[[Check[T]], Callable[[pytest.Config], None]]:
    """Make a check a test with *share* of all cases."""

    def decorate(check: Check[T]) -> Callable[[], None]:
        @functools.wraps(check)
        def test(pytestconfig: pytest.Config) -> None:
            check_cases(check, round(cases(pytestconfig) * share), strategy, corpus)

        # pytest would take the value for a fixture.
        del test.__wrapped__
        return test

    return decorate


def mutated(value: T, chance: random.Random) -> T:
    """Return *value* with a few pieces of its text taken out, doubled or put in."""
    if isinstance(value, tuple):
        # Mutated everywhere, it would get no further than the first check.
        return type(value)(
            mutated(part, chance) if chance.random() < MUTATED else part
            for part in value
        )
    if isinstance(value, list):
        parts = [mutated(part, chance) for part in value]
        return parts * chance.choice([1, 1, 1, 0, 3])  # type: ignore[return-value]
    if not isinstance(value, str):
        return chance.choice([value, *STRANGE])
    text: str = value
    for _ in range(chance.choice([0, 1, 1, 2, 5])):
        start, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        piece = chance.choice(
            [
                "",
                text[start:end] * 2,
                chance.choice(PIECES),
                chr(chance.randrange(2**16)),
            ]
        )
        text = text[:start] + piece + text[end:]
    return text  # type: ignore[return-value]


STRANGE: Sequence[Any] = (
    None,
    True,
    -1,
    0,
    2**70,
    1e400,
    float("nan"),
    b"x",
    [],
    {},
    "",
)
PIECES = (
    *(",", "1:", "*", "\0", "\ud800", "é", "x" * 160, "x" * 8_000, "%", "%00", "%zz"),
    *("@", ":", "/", "?", "&", "=", "#", "[", "]", "::1", " ", "\n", "'", '"', "\\"),
    *("?host=", "&port=0", "&port=99999", "//", "db+", "+psycopg", "sslmode=", "${x}"),
)
