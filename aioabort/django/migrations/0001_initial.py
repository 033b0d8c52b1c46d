"""The table of abort requests."""

from typing import Any, ClassVar

from django.db import migrations, models

from aioabort.django.operations import CreateRequestTable


class Migration(migrations.Migration):
    """Creates the table, or takes over one that exists."""

    initial: ClassVar[bool | None] = True

    operations: ClassVar[Any] = (
        migrations.SeparateDatabaseAndState(
            database_operations=[CreateRequestTable()],
            state_operations=[
                migrations.CreateModel(
                    name="AbortRequest",
                    fields=[
                        (
                            "task_id",
                            models.CharField(
                                max_length=155, primary_key=True, serialize=False
                            ),
                        ),
                        ("requested_at", models.DateTimeField()),
                        ("expires_at", models.DateTimeField()),
                        ("reason", models.TextField(null=True)),
                        ("requested_by", models.TextField(null=True)),
                        ("kill_at", models.DateTimeField(null=True)),
                        ("seen_at", models.DateTimeField(null=True)),
                        ("seen_by", models.TextField(null=True)),
                        ("outcome", models.TextField(null=True)),
                        ("outcome_at", models.DateTimeField(null=True)),
                        ("traceparent", models.TextField(null=True)),
                    ],
                    options={
                        "verbose_name": "abort request",
                        "db_table": "aioabort_request",
                        "permissions": (("abort_task", "Can abort tasks"),),
                        "default_permissions": ("view",),
                        "required_db_vendor": "postgresql",
                    },
                ),
            ],
        ),
    )
