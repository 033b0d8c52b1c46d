"""The statements of the result backend; ``{task}`` and ``{group}`` are Celery's tables."""

from collections.abc import Sequence
from typing import Final

#: The columns of a result that every version of Celery has.
COLUMNS: Final = ("status", "result", "date_done", "traceback")

#: Those that came later, or belong to ``result_extended``.
MORE_COLUMNS: Final = (
    *("children", "name", "args", "kwargs", "worker", "retries", "queue", "stamps"),
)

ALL_COLUMNS: Final = (*COLUMNS, *MORE_COLUMNS)

# A result that is final is never changed by a state that is not, nor a SUCCESS by
# anything; and ABORTED only by the end of the task, or by a later run of the same id.
# The start of a run that is no redelivery is such a one: the id was published anew.
# The row's key is its own if it has one, so that no value of the sequence is wasted.
# For a state that is not final nobody waits until it is on the disk: if the server
# crashes within the second, the row is as it was before, and the end of the task, or a
# request to abort it, is written all the same.
_STORE: Final = """
    -- $1 task id, $2 status, and the other columns; last, whether the id is new
    WITH stored AS (
        INSERT INTO {{task}} AS t (id, task_id, {columns})
        VALUES (
            coalesce(
                (SELECT id FROM {{task}} WHERE task_id = $1::text),
                nextval({{sequence}})
            ),
            $1::text, {values}
        )
        ON CONFLICT (task_id) DO UPDATE SET {changes}
        WHERE coalesce(t.status, 'PENDING') <> 'SUCCESS' AND (
            excluded.status IN ('SUCCESS', 'FAILURE', 'REVOKED')
            OR coalesce(t.status, 'PENDING') NOT IN ('FAILURE', 'REVOKED', 'ABORTED')
            OR t.status <> 'ABORTED' AND ${fresh}::bool
            OR t.status = 'ABORTED' AND EXISTS (
                SELECT FROM {{request}}
                WHERE task_id = $1::text AND outcome IS NOT NULL
            )
        )
        RETURNING t.status
    )
    SELECT EXISTS (SELECT FROM stored) AS is_stored,
           $1::text AS task_id, (SELECT status FROM stored) AS status,
           r.requested_at, r.reason, r.requested_by, r.kill_at,
           extract(epoch FROM r.kill_at - clock_timestamp())::float8 AS kill_in,
           r.seen_at, r.seen_by, r.outcome, r.outcome_at,
           CASE WHEN $2 NOT IN ('SUCCESS', 'FAILURE', 'REVOKED')
               THEN set_config('synchronous_commit', 'off', true) END
    FROM (SELECT) AS one
    LEFT JOIN {{request}} AS r ON r.task_id = $1::text
"""

_READ: Final = """
    -- $1 task id
    SELECT task_id, {columns} FROM {{task}} WHERE task_id = $1::text
"""

EXISTS: Final = """
    -- $1 task id
    SELECT FROM {task} WHERE task_id = $1::text
"""

FORGET: Final = """
    -- $1 task id
    DELETE FROM {task} WHERE task_id = $1::text
"""

SAVE_GROUP: Final = """
    -- $1 group id, $2 its result
    INSERT INTO {group} (id, taskset_id, result, date_done)
    VALUES (
        coalesce(
            (SELECT id FROM {group} WHERE taskset_id = $1::text),
            nextval({group_sequence})
        ),
        $1::text, $2, localtimestamp
    )
    ON CONFLICT (taskset_id) DO UPDATE
    SET result = excluded.result, date_done = excluded.date_done
"""

RESTORE_GROUP: Final = """
    -- $1 group id
    SELECT taskset_id, result, date_done FROM {group} WHERE taskset_id = $1::text
"""

DELETE_GROUP: Final = """
    -- $1 group id
    DELETE FROM {group} WHERE taskset_id = $1::text
"""

# Whoever else deletes at the same time takes other rows.
_DELETE_EXPIRED: Final = """
    -- $1 seconds since they were stored, $2 rows at most
    WITH gone AS (
        DELETE FROM {table}
        WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM {table}
            WHERE date_done < localtimestamp - make_interval(secs => $1)
            ORDER BY date_done
            LIMIT $2
            FOR UPDATE SKIP LOCKED
        ))
        RETURNING 1
    )
    SELECT count(*) AS deleted FROM gone
"""
DELETE_EXPIRED: Final = _DELETE_EXPIRED.replace("{table}", "{task}")
DELETE_EXPIRED_GROUPS: Final = _DELETE_EXPIRED.replace("{table}", "{group}")

COLUMNS_OF: Final = """
    -- $1 the table
    SELECT attname::text AS name FROM pg_attribute
    WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
"""


def store(columns: Sequence[str]) -> str:
    """Return the statement that stores *columns*, of which the status is the first."""
    values = [
        # Its column has no time zone; PostgreSQL writes it in that of the session, as
        # it does with Celery's own.
        f"${number}" + ("::timestamptz" if column == "date_done" else "")
        for number, column in enumerate(columns, 2)
    ]
    changes = [
        # The headers that a task was stamped with are stored once.
        "stamps = coalesce(excluded.stamps, t.stamps)"
        if column == "stamps"
        else f"{column} = excluded.{column}"
        for column in columns
    ]
    return _STORE.format(
        columns=", ".join(columns),
        values=", ".join(values),
        changes=", ".join(changes),
        fresh=len(columns) + 2,
    )


def read(columns: Sequence[str]) -> str:
    """Return the statement that reads *columns*."""
    return _READ.format(columns=", ".join(columns))
