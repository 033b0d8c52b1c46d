"""What the Django app connects when the project is set up."""

from typing import Any

from celery import signals
from django.apps import AppConfig
from django.core.checks import Tags, register
from django.db.backends.signals import connection_created

from aioabort.django import checks, disconnecting, worker
from aioabort.django.databases import dsn_from_databases
from aioabort.settings import provide_dsn


class AioabortConfig(AppConfig):
    """The app ``aioabort.django``, whose tables and permissions begin with aioabort."""

    name = "aioabort.django"
    label = "aioabort"
    verbose_name: Any = "aioabort"

    def ready(self) -> None:
        """Give Celery apps the address in DATABASES, and register the checks."""
        provide_dsn(dsn_from_databases)
        register(checks.check_configuration, "aioabort")
        register(checks.check_database, Tags.database)
        connection_created.connect(disconnecting.disconnect)
        signals.worker_ready.connect(worker.check_at_start, weak=False)
