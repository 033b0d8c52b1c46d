"""System checks, as ``manage.py check`` prints them."""

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.integration.conftest import Stranger
from tests.support.databases import query
from tests.support.django_project import Project
from tests.support.programs import free_port

LITE = """
AIOABORT_DATABASE = "lite"
DATABASES["lite"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": "x"}
"""


def check(project: Project) -> str:
    """Return what the checks print, with those of the database."""
    return project.command("manage.py", "check", "--database=default").stdout


def test_a_project_is_well(migrated: Project) -> None:
    """There is nothing to say."""
    assert "no issues" in check(migrated)


def test_migrate_says_nothing_of_the_table_that_it_makes(project: Project) -> None:
    """The checks of the database run before the first migration."""
    printed = project.manage("migrate", "aioabort")

    assert "Applying aioabort.0001_initial... OK" in printed
    assert "aioabort.W" not in printed


def test_a_missing_table(migrated: Project) -> None:
    """It was migrated, and is gone."""
    query(migrated.dsn, "DROP TABLE aioabort_request")

    printed = check(migrated)
    assert "aioabort.W002" in printed
    assert "aioabort init-db" in printed


@pytest.mark.parametrize(
    ("setting", "identifier", "said"),
    [
        (
            "AIOABORT_DATABASE = 'job'",
            "E001",
            "'job', and DATABASES has only 'default'",
        ),
        (LITE, "E002", "DATABASES['lite'] is SQLite"),
        (
            "CELERY_AIOABORT_POLL_INTERVAL = -1",
            "E003",
            "aioabort_poll_interval must be",
        ),
        ("CELERY_AIOABORT_NOTIFI = True", "E003", "did you mean"),
        (
            f"{LITE}\nCELERY_AIOABORT_DSN = 'postgresql://own'",
            "W003",
            "the admin cannot show",
        ),
    ],
)
def test_settings(project: Project, setting: str, identifier: str, said: str) -> None:
    """They are checked without a connection."""
    project.configure(setting)
    project.configure("DATABASES['default']['HOST'] = '/nowhere'")

    printed = project.command("manage.py", "check").stdout
    assert f"aioabort.{identifier}" in printed
    assert said in printed


def test_no_celery_app(project: Project) -> None:
    """The project's own ``__init__.py`` does not import it."""
    project.write("mysite/__init__.py", "")

    printed = project.command("manage.py", "check").stdout
    assert "aioabort.W001" in printed
    assert "from .celery import app as celery_app" in printed


def test_unreachable(migrated: Project) -> None:
    """Where aioabort connects, but Django does not need to."""
    port = free_port()
    migrated.configure(
        f"CELERY_AIOABORT_DSN = 'postgresql://u:hush@127.0.0.1:{port}/shop'"
    )

    printed = check(migrated)
    assert "aioabort.E004" in printed
    assert str(port) in printed
    assert "hush" not in printed


def test_refused(migrated: Project) -> None:
    """A database that does not exist."""
    address = migrated.dsn.replace("/aioabort_", "/missing_")
    migrated.configure(f"CELERY_AIOABORT_DSN = {address!r}")

    printed = check(migrated)
    assert "aioabort.E005" in printed
    assert "does not exist" in printed


def test_missing_rights(migrated: Project, stranger: Stranger) -> None:
    """The role may connect, and nothing else."""
    migrated.configure(f"CELERY_AIOABORT_DSN = {stranger.dsn(migrated.dsn)!r}")

    printed = check(migrated)
    assert "aioabort.E006" in printed
    assert "INSERT on" in printed
    assert stranger.password not in printed


def test_another_database(migrated: Project, dsn: str) -> None:
    """The Celery app has another address than the admin."""
    migrated.configure(f"CELERY_AIOABORT_DSN = {dsn!r}")

    printed = check(migrated)
    assert "aioabort.W003" in printed
    assert conninfo_to_dict(dsn)["dbname"] in printed
