"""What the runs of one library amount to."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from aioabort.demo.moments import Moment
from aioabort.demo.runs import Run, Verdict


@dataclass(frozen=True)
class Summary:
    """One column of the table; durations are seconds, None stands for "not known"."""

    library: str
    runs: Sequence[Run]
    statements: float
    unit: str
    check: float
    is_set: float

    def count(self, *verdicts: Verdict, moment: Moment | None = None) -> int:
        """Return how many runs, or those aborted at *moment*, ended so."""
        return sum(
            run.verdict in verdicts and moment in {None, run.moment}
            for run in self.runs
        )

    def asked(self, moment: Moment | None = None) -> int:
        """Return how many aborts were asked of runs that could still have stopped."""
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
