"""The address that is taken from Django's DATABASES."""

from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from django.db import ConnectionHandler
from django.db.backends.base.base import BaseDatabaseWrapper

from aioabort import settings
from aioabort.django import databases
from aioabort.django.databases import dsn_from_databases
from aioabort.settings import provide_dsn, read_settings

POSTGRESQL = {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}


class DjangoSettings:
    """What the module reads of Django's settings."""

    AIOABORT_DATABASE: str | None = None


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give the module DATABASES, which are returned as Django completes them."""

    def use(alias: str | None = None, **given: dict[str, Any]) -> ConnectionHandler:
        handler = ConnectionHandler(
            {name: dict(facts) for name, facts in given.items()}
        )
        django_settings = DjangoSettings()
        django_settings.AIOABORT_DATABASE = alias
        monkeypatch.setattr(databases, "connections", handler)
        monkeypatch.setattr(databases, "settings", django_settings)
        return handler

    return use


@pytest.mark.parametrize(
    ("database", "url"),
    [
        ({}, "postgresql:///shop"),
        (
            {"USER": "u", "PASSWORD": "p", "HOST": "db", "PORT": 5433},
            "postgresql://u:p@db:5433/shop",
        ),
        (
            {"USER": "ü@x", "PASSWORD": "a/b:c@d?e#f%g h+", "HOST": "db"},
            "postgresql://%C3%BC%40x:a%2Fb%3Ac%40d%3Fe%23f%25g%20h%2B@db/shop",
        ),
        ({"NAME": "a/b c"}, "postgresql:///a%2Fb%20c"),
        ({"NAME": None}, "postgresql:///postgres"),
        ({"PORT": "5433"}, "postgresql:///shop?port=5433"),
        (
            {"HOST": "/var/run/postgresql", "PORT": "5433"},
            "postgresql://%2Fvar%2Frun%2Fpostgresql:5433/shop",
        ),
        ({"HOST": "::1", "PORT": "5433"}, "postgresql://%3A%3A1:5433/shop"),
        ({"HOST": "a,b", "PORT": "1,2"}, "postgresql://a:1,b:2/shop"),
        ({"HOST": "a,b", "PORT": "1"}, "postgresql://a:1,b:1/shop"),
        (
            {
                "HOST": "db",
                "OPTIONS": {"sslmode": "verify-full", "sslrootcert": "/c a"},
            },
            "postgresql://db/shop?sslmode=verify-full&sslrootcert=/c%20a",
        ),
        (
            {"NAME": "", "OPTIONS": {"service": "shop", "passfile": ".pgpass"}},
            "postgresql://?service=shop&passfile=.pgpass",
        ),
        (
            {"OPTIONS": {"options": "-c search_path=a,b"}},
            "postgresql:///shop?options=-c%20search_path%3Da%2Cb",
        ),
        (
            {"OPTIONS": {"options": "-c x=1", "assume_role": "the owner"}},
            "postgresql:///shop?options=-c%20x%3D1%20-c%20role%3Dthe%5C%20owner",
        ),
        (
            {"OPTIONS": {"user": "u", "dbname": "other"}, "USER": "wins"},
            "postgresql://wins@/other",
        ),
        (
            {
                "OPTIONS": {
                    "pool": {"max_size": 4},
                    "isolation_level": 3,
                    "server_side_binding": True,
                    "prepare_threshold": None,
                    "keepalives": 0,
                    "client_encoding": "UTF8",
                    "sslmode": None,
                }
            },
            "postgresql:///shop",
        ),
    ],
)
def test_address(use: Any, database: dict[str, Any], url: str) -> None:
    """It leads to where Django connects, as the same role."""
    use(default=POSTGRESQL | database)

    assert dsn_from_databases().url == url


def test_connect_timeout(use: Any) -> None:
    """asyncpg has an argument for it."""
    use(default=POSTGRESQL | {"OPTIONS": {"connect_timeout": 3}})

    assert dsn_from_databases().connect_timeout == 3.0


def test_another_alias(use: Any) -> None:
    """AIOABORT_DATABASE names it, and errors name the setting."""
    use("jobs", default=POSTGRESQL, jobs=POSTGRESQL | {"NAME": "jobs"})

    dsn = dsn_from_databases()
    assert (dsn.url, dsn.setting) == ("postgresql:///jobs", "DATABASES['jobs']")


def test_the_name_is_read_late(use: Any) -> None:
    """Django's test runner replaces the name after the project was set up."""
    handler = use(default=POSTGRESQL)
    connection: BaseDatabaseWrapper = handler["default"]
    connection.settings_dict["NAME"] = "test_shop"

    assert dsn_from_databases().url == "postgresql:///test_shop"


@pytest.mark.parametrize(
    ("database", "message"),
    [
        ({"ENGINE": "django.db.backends.sqlite3"}, "is SQLite, and aioabort needs"),
        ({"ENGINE": ""}, "is unknown, and aioabort needs PostgreSQL"),
        ({"OPTIONS": {"sslsni": 1}}, "does not know the parameter 'sslsni'"),
        (
            {"OPTIONS": {"channel_binding": "require"}},
            "this value of 'channel_binding'",
        ),
        ({"PORT": "secret"}, "value of 'port'"),
    ],
)
def test_refused(use: Any, database: dict[str, Any], message: str) -> None:
    """One error names the setting, and shows no password."""
    use(default=POSTGRESQL | {"PASSWORD": "secret"} | database)

    with pytest.raises(ImproperlyConfigured, match=message) as caught:
        dsn_from_databases()
    assert str(caught.value).startswith("DATABASES['default']")
    assert "secret" not in str(caught.value)


def test_unknown_alias(use: Any) -> None:
    """The aliases that exist are named."""
    use("job", default=POSTGRESQL, jobs=POSTGRESQL)

    with pytest.raises(ImproperlyConfigured, match=r"'job'.*'default', 'jobs'"):
        dsn_from_databases()


@pytest.fixture
def provided(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """DATABASES are asked, as in a Django project."""
    monkeypatch.setattr(settings, "_dsn_providers", [])
    use(default=POSTGRESQL)
    provide_dsn(dsn_from_databases)


@pytest.mark.parametrize(
    ("configured", "url"),
    [
        ({}, "postgresql:///shop"),
        ({"result_backend": "redis://"}, "postgresql:///shop"),
        ({"result_backend": "django-db"}, "postgresql:///shop"),
        ({"aioabort_dsn": "postgresql://own"}, "postgresql://own"),
        ({"result_backend": "db+postgresql://results/r"}, "postgresql://results/r"),
    ],
)
@pytest.mark.usefixtures("provided")
def test_an_app_without_an_address(configured: dict[str, Any], url: str) -> None:
    """Its own setting wins, then the database of its results, then DATABASES."""
    app = Celery("test", set_as_current=False)
    app.conf.update(configured)

    assert read_settings(app).dsn.url == url
