"""What all folders of tests share: databases, apps, and which tests run."""

from tests.support.signals import reset_ignored_signals

pytest_plugins = [
    # Before what imports it: pytest rewrites the assertions of new modules only.
    "tests.support.databases",
    "tests.support.apps",
    "tests.support.django_project",
    "tests.support.django_results",
    "tests.support.selection",
    "tests.support.telemetry",
]


def pytest_configure() -> None:
    """Let SIGINT and SIGQUIT reach the programs under test."""
    reset_ignored_signals()
