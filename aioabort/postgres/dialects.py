"""What differs between Celery's own tables and those of django-celery-results."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Dialect:
    """Names and expressions for the tables of one result backend.

    In expressions, ``t`` is the result table and ``ids`` the table of task ids.
    ``new_columns`` and ``new_values`` are those of a row that an abort creates.
    ``result_bytes`` is the result as bytes, ``content_encoding`` says how it is encoded.
    ``criteria`` are conditions on the parameter ``${number}``.
    """

    task_table: str
    group_table: str
    group_id: str
    #: The sequence of the primary keys, if statements have to name it.
    sequence: str | None
    new_columns: str
    new_values: str
    result_bytes: str
    content_encoding: str
    criteria: Mapping[str, str]


# An existing row keeps its key, and takes no value of the sequence.
#
# Celery does not store when a task began: date_done is NULL in STARTED and may be NULL
# in a custom state. But rows get their ids in the order in which tasks begin, so a task
# began before a moment if a row with the same or a larger id was done before it.
#
# Celery writes date_done in the time zone of its session, which is the server's default
# unless the user has set another. Our session has the same, so the comparison is right.
CELERY: Final = Dialect(
    task_table="celery_taskmeta",
    group_table="celery_tasksetmeta",
    group_id="taskset_id",
    sequence="task_id_sequence",
    new_columns="id, task_id, status, date_done",
    new_values="""coalesce(
                   (SELECT old.id FROM {task} AS old WHERE old.task_id = ids.task_id),
                   nextval({sequence})
               ), task_id, 'ABORTED', localtimestamp""",
    result_bytes="r.result",
    content_encoding="NULL::text",
    criteria={
        "task": "t.name = ${number}",
        "worker": "t.worker = ${number}",
        "queue": "t.queue = ${number}",
        "before": "t.id <= (SELECT max(id) FROM {{task}}"
        " WHERE date_done < ${number}::timestamptz)",
    },
)

# Django gives columns no defaults, except the key. The row has no result whose encoding
# it could tell; the worker replaces these values with its first state.
#
# The row is created when the task begins, or by its abort before that.
DJANGO: Final = Dialect(
    task_table="django_celery_results_taskresult",
    group_table="django_celery_results_groupresult",
    group_id="group_id",
    sequence=None,
    new_columns="task_id, status, date_created, date_done, content_type, content_encoding",
    new_values="task_id, 'ABORTED', now(), now(), 'application/json', 'utf-8'",
    result_bytes="convert_to(r.result, 'UTF8')",
    content_encoding="t.content_encoding",
    criteria={
        "task": "t.task_name = ${number}",
        "worker": "t.worker = ${number}",
        "before": "t.date_created < ${number}::timestamptz",
    },
)
