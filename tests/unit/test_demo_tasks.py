"""The task bodies of the demo."""

import threading
from pathlib import Path

import pytest
from celery import Celery

from aioabort import AbortableTask
from aioabort.demo.ledger import Entry
from aioabort.demo.tasks import index
from aioabort.testing import abortable_run
from aioabort.worker.live_token import LiveToken
from tests.support.waiting import BOUND


def test_an_abort_ends_the_rest_between_two_files(
    app: Celery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the page, a run stops within milliseconds, not after its rest."""
    for name in "ab":
        (tmp_path / name).touch()
    entry = Entry()
    rests = threading.Event()
    original = LiveToken.wait

    def wait(token: LiveToken, timeout: float | None = None) -> bool:
        rests.set()
        return original(token, timeout)

    monkeypatch.setattr(LiveToken, "wait", wait)

    @app.task(bind=True, base=AbortableTask, shared=False)
    def run_index(self: AbortableTask[..., str]) -> str:
        return index(self, entry, str(tmp_path), most=2, rest=2 * BOUND)

    def abort() -> None:
        rests.wait(BOUND)
        run.abort()

    with abortable_run(run_index) as run:
        aborting = threading.Thread(target=abort)
        aborting.start()
        run()
        aborting.join()

    assert (entry.aborted, entry.hashed) == (True, 1)
    assert entry.stopped - entry.started < BOUND
