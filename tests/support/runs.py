"""What a run of a task has to do with, where there is no worker."""

import signal
from datetime import UTC, datetime

from aioabort import AbortRequest
from aioabort.timing import Timing
from aioabort.worker.run import Run

PENDING = AbortRequest(
    task_id="id", requested_at=datetime(2026, 1, 1, tzinfo=UTC), reason="why"
)


class RecordingSupervisor:
    """Stands for the agent: records the runs that have seen their abort."""

    def __init__(self, timing: Timing | None = None) -> None:
        self.timing = timing or Timing()
        self.interrupt_signal = signal.SIGURG
        self.seen: list[Run] = []

    def watch(self, run: Run) -> None:
        """Do nothing."""

    def wait_for_first_poll(self, run: Run) -> None:
        """Do nothing."""

    def poll_again(self, run: Run) -> None:
        """Do nothing."""

    def report_seen(self, run: Run) -> None:
        """Record *run*."""
        self.seen.append(run)

    def report_end(self, run: Run) -> None:
        """Do nothing."""

    def report_end_now(self, run: Run) -> None:
        """Do nothing."""
