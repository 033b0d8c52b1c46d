"""The JSON form of tasks, abort requests and receipts."""

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
from aioabort.serialization import serialize, to_json

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


class Unprintable(Exception):
    """An error whose ``__str__()`` raises."""

    def __str__(self) -> str:
        raise RuntimeError


@given(values)
def test_every_value_becomes_json(value: object) -> None:
    """No value is refused, and no NaN or Infinity is left, which JSON lacks."""
    json.dumps(to_json(value), allow_nan=False)


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_json_is_not_changed(value: object) -> None:
    """A value that JSON can hold stays equal."""
    assert to_json(value) == value


@pytest.mark.parametrize(
    ("value", "expected"),
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
        (Unprintable(), {"type": "Unprintable", "message": ""}),
        (object(), {"type": "object"}),
    ],
)
def test_other_values_are_converted(value: object, expected: object) -> None:
    """Readers of JSON get the usual form of a value, or its type alone."""
    assert to_json(value) == expected


def test_an_int_that_python_does_not_print_becomes_its_type() -> None:
    """Python refuses to turn an int of 5,000 digits into text, as does its JSON."""
    huge = 10**5_000
    assert to_json([huge, {huge: 1}]) == [{"type": "int"}, {"{'type': 'int'}": 1}]


def test_a_list_that_contains_itself_becomes_its_type() -> None:
    """An endless value does not end in a RecursionError."""
    endless: list[Any] = []
    endless.append(endless)
    assert to_json(endless) == {"type": "list"}


def test_a_snapshot_shows_no_traceback() -> None:
    """An exception is in ``error``, not in ``result``, and without its traceback."""
    request = AbortRequest(task_id="t", requested_at=MOMENT, reason="why")
    data = serialize(
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
    assert data["error"] == {"type": "ValueError", "message": "bad"}
    assert data["result"] is None
    assert data["request"] == serialize(request)
    assert data["date_done"] == MOMENT.isoformat()
    assert "secret" not in str(data)


def test_date_done_is_null_before_the_end() -> None:
    """Celery sets ``date_done`` with every state; only the last one is the end."""
    data = serialize(TaskSnapshot(task_id="t", state="STARTED", date_done=MOMENT))
    assert data["date_done"] is None


def test_a_receipt_has_four_keys() -> None:
    """Neither its client nor the receipts before it are in the JSON."""
    request = AbortRequest(task_id="t", requested_at=MOMENT, reason="why")
    before = AbortReceipt(task_id="b", answer="requested")
    receipt = AbortReceipt(
        task_id="t", answer="requested", request=request, before=(before,)
    )
    assert serialize(receipt) == {
        "task_id": "t",
        "answer": "requested",
        "state": None,
        "request": {
            "task_id": "t",
            "requested_at": MOMENT.isoformat(),
            "reason": "why",
            "requested_by": None,
            "kill_at": None,
            "seen_at": None,
            "seen_by": None,
            "outcome": None,
            "outcome_at": None,
        },
    }
    assert to_json([receipt]) == [serialize(receipt)]
