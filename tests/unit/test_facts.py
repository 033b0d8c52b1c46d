"""What is told of tasks in JSON."""

import json
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioabort import AbortReceipt, AbortRequest, TaskSnapshot
from aioabort.facts import facts, plain

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes()
    | st.decimals()
    | st.uuids()
    | st.complex_numbers(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers() | st.binary(), inner)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


class Unspeakable(Exception):
    """An error whose message is one, too."""

    def __str__(self) -> str:
        raise RuntimeError


@given(values)
def test_whatever_a_task_returns_is_json(value: object) -> None:
    """No value is refused, and none needs what only Python's JSON has."""
    json.dumps(plain(value), allow_nan=False)


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_what_is_json_stays_as_it_is(value: object) -> None:
    """A value that JSON can hold is not changed."""
    assert plain(value) == value


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (math.inf, "inf"),
        (MOMENT, "2026-01-02T03:04:05+00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (Decimal("1.50"), "1.50"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (b"\xff", "/w=="),
        ((1, {2}), [1, [2]]),
        ({1: None, (2,): b""}, {"1": None, "[2]": ""}),
        (KeyError("k"), {"type": "KeyError", "message": "'k'"}),
        (Unspeakable(), {"type": "Unspeakable", "message": ""}),
        (object(), {"type": "object"}),
    ],
)
def test_what_is_no_json_is_told(value: object, told: object) -> None:
    """In the way that readers of JSON expect, or by its type alone."""
    assert plain(value) == told


def test_what_contains_itself_is_told_by_its_type() -> None:
    """An endless value has an end."""
    endless: list[Any] = []
    endless.append(endless)
    assert plain(endless) == {"type": "list"}


def test_a_snapshot_shows_no_traceback() -> None:
    """Its error is told apart from a value, and the place of it not at all."""
    request = AbortRequest(task_id="t", requested_at=MOMENT, reason="why")
    told = facts(
        TaskSnapshot(
            task_id="t",
            state="FAILURE",
            result=ValueError("bad"),
            traceback="File secret.py",
            date_done=MOMENT,
            request=request,
            is_finished=True,
        )
    )
    assert told["error"] == {"type": "ValueError", "message": "bad"}
    assert told["result"] is None
    assert told["request"] == facts(request)
    assert told["date_done"] == MOMENT.isoformat()
    assert "secret" not in str(told)


def test_a_moment_before_the_end_is_no_end() -> None:
    """Celery notes a moment with each state; only the last one is when it was done."""
    told = facts(TaskSnapshot(task_id="t", state="STARTED", date_done=MOMENT))
    assert told["date_done"] is None


def test_a_receipt_is_told_with_its_request() -> None:
    """All fields by their names."""
    request = AbortRequest(task_id="t", requested_at=MOMENT)
    told = facts(AbortReceipt(task_id="t", answer="requested", request=request))
    assert told["answer"] == "requested"
    assert told["request"] == facts(request)
