"""What is refused before it is sent."""

import pytest

from aioabort import InvalidRequest
from aioabort.client.validation import (
    check_grace,
    check_limit,
    check_task_id,
    check_text,
)


@pytest.mark.parametrize("task_id", ["a", "é" * 155, "0" * 155])
def test_ids_that_fit_are_taken(task_id: str) -> None:
    """The limit is Celery's column: 155 characters, not bytes."""
    assert check_task_id(task_id) is None


@pytest.mark.parametrize(
    ("task_id", "message"),
    [
        ("", "not empty"),
        (None, "not empty"),
        (7, "not empty"),
        ("0" * 156, "at most 155 characters, not 156"),
        ("a\0b", "NUL"),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_ids_that_do_not_fit_are_refused(task_id: object, message: str) -> None:
    """The error says what is wrong with the id."""
    with pytest.raises(InvalidRequest, match=message):
        check_task_id(task_id)


@pytest.mark.parametrize("text", [None, "", "why", "é" * 2_048])
def test_texts_that_fit_are_taken(text: str | None) -> None:
    """The limit of a reason is 4,096 bytes in UTF-8."""
    assert check_text("reason", text) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("é" * 2_049, "reason has at most 4096 bytes in UTF-8, not 4098"),
        ("a\0b", "reason contains a NUL"),
        (b"why", "reason is a string or None, not bytes"),
        ("\udfff", "reason is not valid Unicode"),
    ],
)
def test_texts_that_do_not_fit_are_refused(text: object, message: str) -> None:
    """The error names the argument and says what is wrong with it."""
    with pytest.raises(InvalidRequest, match=message):
        check_text("reason", text)


@pytest.mark.parametrize("grace", [None, 0, 0.5, 86_400])
def test_a_grace_is_seconds_or_none(grace: float | None) -> None:
    """Nothing, no grace at all, or a time."""
    assert check_grace(grace) is None


@pytest.mark.parametrize("limit", [0, 1, 2**63 - 1])
def test_a_limit_is_a_number_of_rows(limit: int) -> None:
    """PostgreSQL takes any number of rows that fits into a bigint."""
    assert check_limit(limit) is None


@pytest.mark.parametrize("limit", [-1, 2**63, True, 1.0, float("nan"), "9"])
def test_a_limit_that_is_no_number_of_rows_is_refused(limit: object) -> None:
    """The error names the argument and the value."""
    with pytest.raises(InvalidRequest, match=r"limit is a whole number from 0"):
        check_limit(limit)


@pytest.mark.parametrize("grace", [-1, float("inf"), float("nan"), True, "30", 1e12])
def test_a_grace_that_is_no_time_is_refused(grace: object) -> None:
    """The error names the argument and the value."""
    with pytest.raises(InvalidRequest, match=r"grace is a number of seconds from 0"):
        check_grace(grace)


def test_an_int_that_python_does_not_print_is_refused() -> None:
    """Python refuses to print an int of 5,000 digits; the message does without."""
    with pytest.raises(InvalidRequest, match="not a huge int"):
        check_grace(10**5_000)
    with pytest.raises(InvalidRequest, match="not a huge int"):
        check_limit(10**5_000)
