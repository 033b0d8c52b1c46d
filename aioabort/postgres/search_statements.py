"""The statement that finds unfinished tasks; ``Tables.fill()`` completes it."""

from collections.abc import Iterable
from typing import Final

from aioabort.postgres.dialects import Dialect

_FIND_UNFINISHED: Final = """
    -- $1 find ids after this one, $2 ids at most, then the criteria
    SELECT t.task_id
    FROM {task} AS t
    LEFT JOIN {request} AS r ON r.task_id = t.task_id
    WHERE t.task_id > $1
        AND coalesce(t.status, 'PENDING') NOT IN ('SUCCESS', 'FAILURE', 'REVOKED')
        -- A task that stores no result has ended when its outcome is recorded.
        AND (r.outcome IS NULL OR t.status NOT IN ('PENDING', 'ABORTED'))
"""


def find_unfinished(dialect: Dialect, criteria: Iterable[str]) -> str:
    """Return the statement that finds unfinished tasks by *criteria*."""
    conditions = [
        dialect.criteria[name].format(number=number)
        for number, name in enumerate(criteria, 3)
    ]
    return (
        " AND ".join([_FIND_UNFINISHED, *conditions]) + " ORDER BY t.task_id LIMIT $2"
    )
