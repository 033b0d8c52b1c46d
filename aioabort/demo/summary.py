"""The figures of one library's runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from aioabort.demo.runs import AbortMoment, DemoRun, Verdict


@dataclass(frozen=True)
class Summary:
    """One column of the table; durations are in seconds, None means "unknown"."""

    library: str
    runs: Sequence[DemoRun]
    statements: float
    unit: str
    check: float
    is_set: float

    def count(self, *verdicts: Verdict, moment: AbortMoment | None = None) -> int:
        """Return the number of runs (aborted at *moment*) with one of *verdicts*."""
        return sum(
            run.verdict in verdicts and moment in {None, run.moment}
            for run in self.runs
        )

    def count_aborts(self, moment: AbortMoment | None = None) -> int:
        """Return the number of aborts of runs that could still stop."""
        return self.count("honoured", "lost", moment=moment)

    @property
    def abort_took(self) -> float | None:
        """The median duration of an abort()."""
        took = [run.returned_at - run.called_at for run in self.runs]
        return median(took) if took else None

    def stopped_after(self, percent: int) -> float | None:
        """Return a percentile of the time from abort()'s return to the stop."""
        times = (run.stopped_after for run in self.runs)
        return percentile([time for time in times if time is not None], percent)


def percentile(values: Sequence[float], percent: int) -> float | None:
    """Return the smallest value that *percent* of *values* do not exceed."""
    if not values:
        return None
    rank = -(-len(values) * percent // 100)
    return sorted(values)[max(rank, 1) - 1]
