"""What was measured: rounds of raw values, and the figures that are made of them."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

#: Values of a round that are kept, evenly spread over its order.
MOST_VALUES = 1_000

Case = Mapping[str, int | str]


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the smallest of *values* that *percent* of them do not exceed."""
    ordered = sorted(values)
    rank = math.ceil(len(ordered) * percent / 100)
    return ordered[max(rank, 1) - 1]


def thinned(values: Sequence[float], most: int = MOST_VALUES) -> list[float]:
    """Return *values* in order, or *most* of them: both ends, and evenly in between."""
    ordered = sorted(values)
    if len(ordered) <= most:
        return ordered
    last = len(ordered) - 1
    return [ordered[round(n * last / (most - 1))] for n in range(most)]


@dataclass
class Series:
    """What one contender did in one case; durations are seconds."""

    subject: str
    measure: str
    contender: str
    unit: str
    case: Case
    rounds: list[list[float]] = field(default_factory=list)

    @property
    def p50(self) -> float:
        """The median of a round; of several rounds, the median of theirs."""
        return self._typical(50)

    @property
    def p99(self) -> float:
        """What 99 of 100 do not exceed; of several rounds, the median of theirs."""
        return self._typical(99)

    @property
    def longest(self) -> float:
        """The largest value of all rounds."""
        return max(max(values) for values in self.rounds)

    def _typical(self, percent: float) -> float:
        return median(percentile(values, percent) for values in self.rounds)


@dataclass
class Records:
    """A run of the benchmark: the machine, the versions, and all measurements."""

    about: dict[str, Any] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)

    def add(
        self,
        subject: str,
        measure: str,
        contender: str,
        values: Sequence[float],
        *,
        unit: str = "s",
        **case: int | str,
    ) -> Series:
        """Add a round of *values*."""
        found = self.find(subject, measure, contender, **case)
        if found is None:
            found = Series(subject, measure, contender, unit, case)
            self.series.append(found)
        found.rounds.append([float(f"{value:.6g}") for value in thinned(values)])
        return found

    def find(
        self, subject: str, measure: str, contender: str, **case: int | str
    ) -> Series | None:
        """Return the series of exactly that *case*, or None."""
        for series in self.of(subject, measure):
            if series.contender == contender and series.case == case:
                return series
        return None

    def of(self, subject: str, measure: str | None = None) -> list[Series]:
        """Return the series of *subject*, or those of one *measure*."""
        return [
            series
            for series in self.series
            if series.subject == subject and measure in {None, series.measure}
        ]

    def save(self, path: Path) -> None:
        """Write it as JSON, one series a line."""
        lines = ",\n".join(json.dumps(asdict(series)) for series in self.series)
        about = json.dumps(self.about)
        path.write_text(f'{{"about": {about},\n"series": [\n{lines}\n]}}\n')


def load(path: Path) -> Records:
    """Return what ``save()`` wrote."""
    raw = json.loads(path.read_text())
    return Records(raw["about"], [Series(**series) for series in raw["series"]])
