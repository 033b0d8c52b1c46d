"""The operation of a migration that creates the table of abort requests."""

from typing import Any

from django.db.migrations import RunSQL

from aioabort.postgres.schema import schema_sql
from aioabort.postgres.tables import Tables

_TABLES = Tables("celery_taskmeta")


class CreateRequestTable(RunSQL):
    """Creates the table as ``init-db`` does, on PostgreSQL only.

    A table that exists is left as it is: it may belong to another role.
    """

    def __init__(self) -> None:
        super().__init__(schema_sql(_TABLES), f"DROP TABLE IF EXISTS {_TABLES.request}")

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        """Return how to write this operation into a squashed migration."""
        return type(self).__name__, [], {}

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Create the table if it is missing."""
        connection = schema_editor.connection
        if connection.vendor != "postgresql":
            return
        if not schema_editor.collect_sql and _has_table(connection):
            return
        super().database_forwards(app_label, schema_editor, from_state, to_state)

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        """Drop the table."""
        if schema_editor.connection.vendor == "postgresql":
            super().database_backwards(app_label, schema_editor, from_state, to_state)


def _has_table(connection: Any) -> bool:
    with connection.cursor() as cursor:
        names = connection.introspection.table_names(cursor)
    return _TABLES.request_name in names
