"""The names of tables and columns, and how they are put into statements."""

from dataclasses import dataclass
from typing import Final

from aioabort.postgres.dialects import CELERY, Dialect

#: The columns of an abort request, which are the fields of ``AbortRequest``.
REQUEST_COLUMNS: Final = (
    *("task_id", "requested_at", "reason", "requested_by", "kill_at"),
    *("seen_at", "seen_by", "outcome", "outcome_at"),
)

#: What ``{request_columns}`` stands for in a statement: all but the task's id, which
#: some statements take from another table. ``r`` is the request table.
_REQUEST_COLUMNS: Final = ", ".join(
    f"r.{name}" for name in REQUEST_COLUMNS if name != "task_id"
)

#: What ``{kill_in}`` stands for: the seconds until the kill, by PostgreSQL's clock.
_KILL_IN: Final = "extract(epoch FROM r.kill_at - clock_timestamp())::float8 AS kill_in"

# An UPDATE locks rows in the order of its plan. This locks them first, by id. The inner
# sub-select saves a new plan for each execution.
_LOCK: Final = """WITH locked AS (
        SELECT task_id
        FROM {request}
        WHERE task_id = ANY((SELECT $1::text[])::text[])
            AND {condition}
        ORDER BY task_id COLLATE "C"
        FOR NO KEY UPDATE
    )"""


@dataclass(frozen=True, slots=True)
class Tables:
    """The names of Celery's result table and of ours, quoted as identifiers."""

    task_table: str
    schema: str | None = None
    has_results: bool = True
    group_table: str = CELERY.group_table
    group_schema: str | None = None
    #: Whether Celery's table of groups exists and the role may read it.
    has_groups: bool = False
    #: The schemas of the sequences, if they are not those of their tables.
    sequence_schema: str | None = None
    group_sequence_schema: str | None = None
    dialect: Dialect = CELERY

    @property
    def task(self) -> str:
        """Celery's result table."""
        return self._qualified(self.task_table)

    @property
    def request(self) -> str:
        """The request table, in the schema of Celery's result table.

        An app with a result table of its own has a request table of its own.
        """
        return self._qualified(self.request_name)

    @property
    def sequence(self) -> str | None:
        """The sequence of the primary keys, if statements have to name it."""
        name = self.dialect.sequence
        return name and _qualified(self.sequence_schema or self.schema, name)

    @property
    def group(self) -> str:
        """Celery's table of groups."""
        return _qualified(self.group_schema, self.group_table)

    @property
    def group_sequence(self) -> str:
        """The sequence of the primary keys of Celery's table of groups."""
        schema = self.group_sequence_schema or self.group_schema
        return _qualified(schema, "taskset_id_sequence")

    @property
    def request_name(self) -> str:
        """The request table without its schema, not quoted."""
        is_default = self.task_table == self.dialect.task_table
        return (
            "aioabort_request" if is_default else f"aioabort_request_{self.task_table}"
        )

    @property
    def _unless_group(self) -> str:
        # A part of the statement that stores abort requests: an abort would have to wait
        # for a statement of its own.
        if not self.has_groups:
            return ""
        return f"""WHERE NOT EXISTS (
            SELECT FROM unnest((SELECT $1::text[])) AS ids (id)
            JOIN {self.group} AS g ON g.{self.dialect.group_id} = ids.id
        )"""

    def fill(self, statement: str) -> str:
        """Put the names of tables and columns into *statement*."""
        dialect, sequence = self.dialect, self.sequence or ""
        return statement.format(
            task=self.task,
            task_literal=_literal(self.task),
            request=self.request,
            request_literal=_literal(self.request),
            request_columns=_REQUEST_COLUMNS,
            kill_in=_KILL_IN,
            unless_group=self._unless_group,
            lock_pending=_LOCK.format(
                request=self.request, condition="outcome IS NULL"
            ),
            lock_unseen=_LOCK.format(request=self.request, condition="seen_at IS NULL"),
            index=quoted(f"{self.request_name}_expires_at"),
            kill_index=quoted(f"{self.request_name}_kill_at"),
            sequence=_literal(sequence),
            sequence_name=sequence,
            new_columns=dialect.new_columns,
            new_values=dialect.new_values.format(
                task=self.task, sequence=_literal(sequence)
            ),
            result_bytes=dialect.result_bytes,
            content_encoding=dialect.content_encoding,
            group_id=dialect.group_id,
            task_index=quoted(f"ix_{self.task_table}_date_done"),
            group=self.group,
            group_sequence=_literal(self.group_sequence),
            group_sequence_name=self.group_sequence,
            group_index=quoted(f"ix_{self.group_table}_date_done"),
        )

    def _qualified(self, name: str) -> str:
        return _qualified(self.schema, name)


def _qualified(schema: str | None, name: str) -> str:
    return ".".join(map(quoted, [name] if schema is None else [schema, name]))


def _literal(text: str) -> str:
    """Return *text* as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """Return *name* as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
