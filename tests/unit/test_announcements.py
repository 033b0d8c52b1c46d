"""What a worker logs and sends when a task with an abort request has ended."""

import logging
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery

from aioabort import AbortRequest
from aioabort.models import Outcome
from aioabort.signals import task_aborted
from aioabort.worker.announcements import announce_outcome

MOMENT = datetime(2026, 1, 2, tzinfo=UTC)

app = Celery("proj", set_as_current=False)


@app.task(name="proj.index", shared=False)
def index() -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("said", "outcome", "line"),
    [
        (
            {"requested_by": "ann", "reason": "wrong file"},
            "aborted",
            " by 'ann': 'wrong file'; its outcome is aborted",
        ),
        (
            {"reason": "a\nb\x1b[2J"},
            "killed",
            r": 'a\nb\x1b[2J'; its outcome is killed",
        ),
        ({}, "too_late", "; its outcome is too_late"),
    ],
)
def test_one_line_says_who_asked_and_why(
    caplog: pytest.LogCaptureFixture, said: dict[str, Any], outcome: Outcome, line: str
) -> None:
    """Line breaks and escape sequences in a reason do not leave the line."""
    request = AbortRequest(task_id="t", requested_at=MOMENT, **said)
    sent: list[dict[str, Any]] = []

    def receive(**values: Any) -> None:
        sent.append(values)

    task_aborted.connect(receive, sender=index)
    with caplog.at_level(logging.INFO, "aioabort"):
        announce_outcome(index, request, outcome)
    task_aborted.disconnect(receive, sender=index)

    [record] = caplog.records
    assert record.levelname == "INFO"
    assert (
        record.message == f"aioabort worker: task proj.index[t] was asked to stop{line}"
    )
    assert [(each["request"], each["outcome"]) for each in sent] == [(request, outcome)]
