"""Which tests run: conditional collection, and no skips in CI. A pytest plugin."""

import os
from collections.abc import Generator

import pytest

#: Set to 1, it turns each skipped test into a failure.
NO_SKIPS_VARIABLE = "AIOABORT_TEST_NO_SKIPS"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of conditional collection."""
    config.addinivalue_line(
        "markers",
        "only_if(condition): not collected where it can never pass, by a version or a"
        " platform. A test whose program is not installed is skipped instead.",
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Deselect the tests that cannot pass with this version or on this platform."""
    others = [item for item in items if not _belongs_here(item)]
    if others:
        items[:] = [item for item in items if item not in others]
        config.hook.pytest_deselected(items=others)


def _belongs_here(item: pytest.Item) -> bool:
    return all(mark.args[0] for mark in item.iter_markers("only_if"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[
    None, pytest.TestReport, pytest.TestReport
]:
    """Fail a test that skips itself, or that a marker or a fixture skips."""
    report = yield
    # An expected failure is reported as a skip with this attribute.
    if report.skipped and not hasattr(report, "wasxfail"):
        _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[
    None, pytest.CollectReport, pytest.CollectReport
]:
    """Fail a module that is skipped while it is collected, as by importorskip."""
    report = yield
    if report.skipped:
        _forbid_skip(report)
    return report


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get(NO_SKIPS_VARIABLE) != "1":
        return
    match report.longrepr:
        case (path, line, reason):
            where = f"{path}:{line}: {reason}"
        case other:
            where = str(other)
    report.outcome = "failed"
    report.longrepr = f"${NO_SKIPS_VARIABLE} is set, but this is skipped: {where}"
