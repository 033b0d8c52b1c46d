"""Databases with the tables of django-celery-results, and Django in this process.

Django has one configuration a process. What differs between tests is the name of its
database, which its connections read when they are opened.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import django
import pytest
from anyio import to_thread
from celery import Celery, states
from celery.app.task import Context
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from psycopg.conninfo import conninfo_to_dict

from tests.support.databases import Server, temporary_database

#: Ends all connections to the database but the one of the test.
END_CONNECTIONS = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


def database_settings(dsn: str) -> dict[str, str]:
    """Return the entry of DATABASES that leads to *dsn*."""
    parts = conninfo_to_dict(dsn)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts["dbname"],
        "USER": parts["user"],
        "PASSWORD": parts.get("password", ""),
        "HOST": parts.get("host", ""),
        "PORT": parts.get("port", ""),
    }


@cache
def _configure() -> None:
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql"}},
        INSTALLED_APPS=["django_celery_results"],
        USE_TZ=True,
    )
    django.setup()


def lead_django_to(dsn: str) -> None:
    """Let the ORM's connections that are opened from now on lead to *dsn*."""
    _configure()
    connections.settings["default"] |= database_settings(dsn)


def close_connection() -> None:
    """Close the ORM's connection of this thread."""
    connections.close_all()


def migrate(dsn: str) -> None:
    """Create the tables of django-celery-results."""
    lead_django_to(dsn)
    call_command("migrate", verbosity=0)
    close_connection()


@pytest.fixture(scope="session")
def django_template(server: Server) -> Iterator[str]:
    """The name of a database with the tables of django-celery-results alone."""
    with temporary_database(server) as dsn:
        migrate(dsn)
        yield urlsplit(dsn).path[1:]


@pytest.fixture
def django_dsn(server: Server, django_template: str) -> Iterator[str]:
    """A fresh database with these tables, to which the ORM leads."""
    with temporary_database(server, django_template) as dsn:
        lead_django_to(dsn)
        yield dsn


async def end_by_orm(
    app: Celery,
    task_id: str,
    result: Any,
    state: str = states.SUCCESS,
    **context: Any,
) -> None:
    """Store a result, or another state, as a worker does; *context* is its task's."""

    def store() -> None:
        request = Context(id=task_id, **context)
        app.backend.store_result(task_id, result, state, request=request)
        close_connection()

    await to_thread.run_sync(store)
