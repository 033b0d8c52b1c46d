"""The waiters that an export of the metrics counts."""

import os

from opentelemetry.metrics import CallbackOptions

from aioabort.telemetry.opentelemetry import OpenTelemetryInstruments


class Waiters:
    """The waiters of one client."""

    def __init__(self, size: int) -> None:
        self.size = size


def count(instruments: OpenTelemetryInstruments) -> float:
    """Return the number that an export would have."""
    [observation] = instruments._observe_waiters(CallbackOptions())
    return observation.value


def test_waiters_of_a_deleted_client_do_not_count() -> None:
    """The instruments keep no client alive, and count each client once."""
    instruments = OpenTelemetryInstruments()
    first, second = Waiters(1), Waiters(2)
    for waiters in (first, second, second):
        instruments.count_waiters(waiters)
    assert count(instruments) == 3
    del second, waiters
    assert count(instruments) == 1


def test_a_fork_during_an_export_does_not_block_the_child() -> None:
    """Closes: exporter: reads the waiters | another thread forks | child: opens a client."""
    instruments = OpenTelemetryInstruments()
    statuses: list[int] = []

    class Forking:
        """Waiters whose number is read while the process forks."""

        @property
        def size(self) -> int:
            pid = os.fork()
            if not pid:
                instruments.count_waiters(Waiters(1))
                os._exit(0)
            statuses.append(os.waitpid(pid, 0)[1])
            return 0

    forking = Forking()
    instruments.count_waiters(forking)  # type: ignore[arg-type]
    count(instruments)
    assert statuses == [0]
