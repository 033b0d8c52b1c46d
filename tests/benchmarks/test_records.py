"""The figures of the benchmark are made of what was measured."""

from pathlib import Path

import pytest

from . import report
from .records import Records, load, percentile, thinned
from .targets import TARGETS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "benchmarks"


@pytest.mark.parametrize(
    ("percent", "figure"), [(0, 1), (1, 1), (50, 50), (50.1, 51), (99, 99), (100, 100)]
)
def test_percentile_is_a_value_that_was_measured(percent: float, figure: int) -> None:
    """Nothing is interpolated, and the order in which it came does not matter."""
    assert percentile(reversed(range(1, 101)), percent) == figure


def test_thinning_keeps_the_figures() -> None:
    """Of many values so many are kept that both ends and the figures stay."""
    values = [float(n) for n in range(100_000)]
    kept = thinned(values[::-1])

    assert len(kept) == 1_000
    assert (kept[0], kept[-1]) == (0, 99_999)
    assert percentile(kept, 99) == pytest.approx(percentile(values, 99), rel=0.002)


def test_noisy_round_does_not_make_the_figure(tmp_path: Path) -> None:
    """A figure is the median of the rounds' own, also after it was saved."""
    records = Records({"date": "2026-01-01"})
    for values in ([1.0, 2.0, 3.0], [1.0, 2.0, 300.0], [1.0, 2.0, 4.0]):
        records.add("waiting", "delay", "one", values, waiters=1)
    records.add("waiting", "delay", "one", [9.0], waiters=100)
    records.save(tmp_path / "records.json")
    loaded = load(tmp_path / "records.json")

    assert loaded == records
    found = loaded.find("waiting", "delay", "one", waiters=1)
    assert found is not None
    assert (found.p50, found.p99, found.longest) == (2.0, 4.0, 300.0)


def test_targets_tell_what_was_not_measured() -> None:
    """A figure that is missing is no figure that is met."""
    rows = [target.row(Records()) for target in TARGETS]

    assert {verdict for *_, verdict in rows} == {"not measured"}


def test_recorded_run_is_what_the_docs_show(tmp_path: Path) -> None:
    """The tables of the docs are those of the recorded run, to the letter."""
    report.write(load(DOCS / "recorded.json"), tmp_path)

    for path in tmp_path.glob("*.md"):
        assert path.read_text() == (DOCS / path.name).read_text()


def test_readme_shows_the_recorded_run() -> None:
    """The README's table is that of the recorded run, and the report replaces it."""
    readme = (ROOT / "README.md").read_text()
    records = load(DOCS / "recorded.json")

    assert report.summary(records) in readme
    assert report.with_summary(readme, records) == readme
    assert report.with_summary(readme, Records()) != readme
