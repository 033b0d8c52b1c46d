"""The table of abort requests as a model, for Django's admin and queries."""

from datetime import datetime
from typing import Any

from django.db import models

from aioabort.django.databases import request_alias


class RequestManager(models.Manager["AbortRequest"]):
    """Reads from the database that has the abort requests."""

    def get_queryset(self) -> Any:
        """Return all abort requests."""
        return super().get_queryset().using(request_alias())


class AbortRequest(models.Model):
    """A row of ``aioabort_request``, as ``aioabort.AbortRequest`` describes it.

    Only for reading: a row that Django writes notifies no worker.
    """

    task_id: "models.CharField[str, str]" = models.CharField(
        primary_key=True, max_length=155
    )
    requested_at: "models.DateTimeField[datetime, datetime]" = models.DateTimeField()
    expires_at: "models.DateTimeField[datetime, datetime]" = models.DateTimeField()
    reason: "models.TextField[str | None, str | None]" = models.TextField(null=True)
    requested_by: "models.TextField[str | None, str | None]" = models.TextField(
        null=True
    )
    kill_at: "models.DateTimeField[datetime | None, datetime | None]" = (
        models.DateTimeField(null=True)
    )
    seen_at: "models.DateTimeField[datetime | None, datetime | None]" = (
        models.DateTimeField(null=True)
    )
    seen_by: "models.TextField[str | None, str | None]" = models.TextField(null=True)
    outcome: "models.TextField[str | None, str | None]" = models.TextField(null=True)
    outcome_at: "models.DateTimeField[datetime | None, datetime | None]" = (
        models.DateTimeField(null=True)
    )
    traceparent: "models.TextField[str | None, str | None]" = models.TextField(
        null=True
    )

    objects: Any = RequestManager()

    class Meta:
        """The names of the table and of the permissions."""

        db_table = "aioabort_request"
        required_db_vendor = "postgresql"
        default_permissions: Any = ("view",)
        permissions: Any = (("abort_task", "Can abort tasks"),)
        verbose_name = "abort request"

    def __str__(self) -> str:
        return self.task_id
