"""The names of the tables, put into statements as quoted identifiers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tables:
    """The names of Celery's result table and of ours, quoted as identifiers."""

    task_table: str
    schema: str | None = None
    has_results: bool = True
    group_table: str = "celery_tasksetmeta"
    group_schema: str | None = None

    @property
    def task(self) -> str:
        """Celery's result table."""
        return self._qualified(self.task_table)

    @property
    def request(self) -> str:
        """The table of requests, beside Celery's; an app with its own has its own."""
        return self._qualified(self._request_table)

    @property
    def sequence(self) -> str:
        """The sequence that Celery's table takes its primary keys from."""
        return self._qualified("task_id_sequence")

    @property
    def group(self) -> str:
        """Celery's table of groups."""
        return _qualified(self.group_schema, self.group_table)

    @property
    def group_sequence(self) -> str:
        """The sequence that Celery's table of groups takes its primary keys from."""
        return _qualified(self.group_schema, "taskset_id_sequence")

    @property
    def _request_table(self) -> str:
        is_default = self.task_table == "celery_taskmeta"
        return (
            "aioabort_request" if is_default else f"aioabort_request_{self.task_table}"
        )

    def fill(self, statement: str) -> str:
        """Put the tables' names into *statement*."""
        return statement.format(
            task=self.task,
            request=self.request,
            index=quoted(f"{self._request_table}_expires_at"),
            kill_index=quoted(f"{self._request_table}_kill_at"),
            sequence=_text(self.sequence),
            sequence_name=self.sequence,
            task_index=quoted(f"ix_{self.task_table}_date_done"),
            group=self.group,
            group_sequence=_text(self.group_sequence),
            group_sequence_name=self.group_sequence,
            group_index=quoted(f"ix_{self.group_table}_date_done"),
        )

    def _qualified(self, name: str) -> str:
        return _qualified(self.schema, name)


def _qualified(schema: str | None, name: str) -> str:
    return ".".join(map(quoted, [name] if schema is None else [schema, name]))


def _text(name: str) -> str:
    """Return *name* as a text of SQL."""
    return "'" + name.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """Return *name* as an identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'
