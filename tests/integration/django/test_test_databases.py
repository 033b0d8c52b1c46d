"""Tests of a project use its test database, under Django's runner and pytest-django."""

import pytest

from tests.support.databases import query
from tests.support.django_project import Project

#: The same file for both runners. The second test begins with a client that is open.
TESTS = """
from django.db import connection
from django.test import TransactionTestCase

from aioabort import sync
from aioabort.django.models import AbortRequest


class AbortTests(TransactionTestCase):
    def test_abort(self):
        assert connection.settings_dict["NAME"].startswith("test_")
        assert sync.abort("tested", requested_by="a test").is_requested
        assert AbortRequest.objects.get().requested_by == "a test"

    def test_abort_again(self):
        assert AbortRequest.objects.count() == 0
        assert sync.abort("tested").answer == "requested"
"""

#: A call before the runner has made its database opens a client of the real one.
OPENED_TOO_EARLY = """
from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "mysite"

    def ready(self):
        from aioabort import sync

        sync.snapshot("early")
"""

TEST_DATABASES = """
    SELECT datname FROM pg_database WHERE datname = 'test_' || current_database()
"""


@pytest.mark.parametrize(
    "command",
    [
        ("manage.py", "test", "--noinput"),
        ("-m", "pytest", "-p", "no:cacheprovider", "--ds=mysite.settings", "mysite"),
    ],
    ids=["django", "pytest-django"],
)
@pytest.mark.parametrize("is_early", [False, True], ids=["late", "early"])
def test_the_real_database_is_not_touched(
    migrated: Project, command: tuple[str, ...], is_early: bool
) -> None:
    """Nothing is written to it, and the test database can be dropped at the end."""
    migrated.write("mysite/test_aborts.py", TESTS)
    if is_early:
        migrated.write("mysite/apps.py", OPENED_TOO_EARLY)

    done = migrated.command(*command)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout or "Ran 2 tests" in done.stdout
    assert query(migrated.dsn, "SELECT count(*) FROM aioabort_request") == [(0,)]
    assert query(migrated.dsn, TEST_DATABASES) == []
