"""A Django project over the test's database, whose programs run in their own process.

A pytest plugin.

Django has one configuration a process, and pytest's is none.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.support.databases import Server, temporary_database
from tests.support.waiting import BOUND

SETTINGS = """
ALLOWED_HOSTS = ["*"]
CELERY_BROKER_URL = "memory://"
CELERY_RESULT_BACKEND = "django-db"
DATABASES = {databases!r}
DEBUG = True
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "aioabort.django",
    "django_celery_results",
    "mysite",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
ROOT_URLCONF = "mysite.urls"
SECRET_KEY = "a secret of this test"
STATIC_URL = "/static/"
TEMPLATES = [
    {{
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {{
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        }},
    }}
]
USE_TZ = True
"""

FILES = {
    "manage.py": """
import os, sys
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
from django.core.management import execute_from_command_line
execute_from_command_line(sys.argv)
""",
    "mysite/__init__.py": "from .celery import app as celery_app\n",
    "mysite/celery.py": """
import os
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
app = Celery("mysite")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
""",
    "mysite/urls.py": """
from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
""",
}

#: Begins a program, which prints its results by ``show()``.
BEGINNING = """
import json, os
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
import django
django.setup()

def show(value):
    print("SHOWN " + json.dumps(value))

"""


class Project:
    """A folder with a project called ``mysite``."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder = folder
        self.dsn = dsn
        for name, text in FILES.items():
            self.write(name, text)
        self.write("mysite/settings.py", SETTINGS.format(databases=databases_of(dsn)))

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def configure(self, text: str) -> None:
        """Append *text* to the settings."""
        with (self.folder / "mysite" / "settings.py").open("a") as settings:
            settings.write(f"\n{text}\n")

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a module of Python's in the folder."""
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * BOUND,
            check=False,
        )

    def manage(self, *words: str) -> str:
        """Run a command of ``manage.py``, which must succeed; return what it prints."""
        done = self.command("manage.py", *words)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def run(self, program: str) -> Any:
        """Run a program that ``show()``s one value; return that."""
        self.write("program.py", BEGINNING + program)
        done = self.command("program.py")
        shown = [
            line.removeprefix("SHOWN ")
            for line in done.stdout.splitlines()
            if line.startswith("SHOWN ")
        ]
        assert done.returncode == 0, done.stdout
        assert len(shown) == 1, done.stdout
        return json.loads(shown[0])

    def environment(self) -> dict[str, str]:
        """Return the variables that its programs need."""
        paths = [str(self.folder), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONWARNINGS": "ignore",
        }


def databases_of(dsn: str) -> dict[str, dict[str, Any]]:
    """Return ``DATABASES`` that lead to *dsn*."""
    parts = conninfo_to_dict(dsn)
    return {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": parts["dbname"],
            "USER": parts["user"],
            "PASSWORD": parts.get("password", ""),
            "HOST": parts.get("host", ""),
            "PORT": parts.get("port", ""),
        }
    }


@pytest.fixture
def project(tmp_path: Path, empty_dsn: str) -> Project:
    """A project whose database has no table."""
    return Project(tmp_path, empty_dsn)


@pytest.fixture(scope="session")
def migrated_template(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The name of a database with all tables of a project: they take long to make."""
    with temporary_database(server) as dsn:
        project = Project(tmp_path_factory.mktemp("template"), dsn)
        project.manage("migrate", "--verbosity=0")
        yield databases_of(dsn)["default"]["NAME"]


@pytest.fixture
def migrated(
    tmp_path: Path, server: Server, migrated_template: str
) -> Iterator[Project]:
    """A project whose database has all tables."""
    with temporary_database(server, migrated_template) as dsn:
        yield Project(tmp_path, dsn)
