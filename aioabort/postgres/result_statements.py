"""Statements of the result backend; ``Tables.fill()`` completes them.

``{task}`` and ``{group}`` are Celery's tables, ``{request}`` is the request table.
"""

from collections.abc import Sequence
from typing import Final

#: The columns of a result that every version of Celery has.
COLUMNS: Final = ("status", "result", "date_done", "traceback")

#: The columns of later versions and of ``result_extended``.
MORE_COLUMNS: Final = (
    *("children", "name", "args", "kwargs", "worker", "retries", "queue", "stamps"),
)

ALL_COLUMNS: Final = (*COLUMNS, *MORE_COLUMNS)

# Precedence: SUCCESS > FAILURE > REVOKED > ABORTED > the rest. A state replaces one that
# does not precede it, with two exceptions. The first state of a publication's
# first run replaces FAILURE and REVOKED: the id was published again. Any state replaces
# ABORTED once the abort request is settled: a later run of the same id stores it.
#
# An existing row keeps its key, so that no value of the sequence is wasted.
#
# A state that is not final is committed without waiting for the disk. If the server
# crashes within the next second, the row is as it was before. The final state or an
# abort request can be written to it as before.
_STORE_RESULT: Final = """
    -- $1 task id, $2 status, then the other columns, then whether the id is new
    WITH stored AS (
        INSERT INTO {{task}} AS t (id, task_id, {columns})
        VALUES (
            coalesce(
                (SELECT id FROM {{task}} WHERE task_id = $1::text),
                nextval({{sequence}})
            ),
            $1::text, {values}
        )
        ON CONFLICT (task_id) DO UPDATE
        SET {changes}
        WHERE coalesce(t.status, 'PENDING') <> 'SUCCESS' AND (
            excluded.status IN ('SUCCESS', 'FAILURE')
            OR excluded.status = 'REVOKED' AND coalesce(t.status, 'PENDING') <> 'FAILURE'
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
           {{request_columns}}, {{kill_in}},
           CASE WHEN $2 NOT IN ('SUCCESS', 'FAILURE', 'REVOKED')
               THEN set_config('synchronous_commit', 'off', true) END
    FROM (SELECT) AS one_row
    LEFT JOIN {{request}} AS r ON r.task_id = $1::text
"""

_READ_RESULT: Final = """
    -- $1 task id, $2 the most bytes of a result that are sent
    SELECT task_id, {columns}, octet_length(result) AS size
    FROM {{task}}
    WHERE task_id = $1::text
"""

HAS_RESULT: Final = """
    -- $1 task id
    SELECT FROM {task} WHERE task_id = $1::text
"""

DELETE_RESULT: Final = """
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

# SKIP LOCKED: two cleanups at the same time delete different rows.
_DELETE_EXPIRED: Final = """
    -- $1 seconds since the row was stored, $2 rows at most
    WITH gone AS (
        DELETE FROM {table}
        WHERE ctid = ANY(ARRAY(
            SELECT ctid
            FROM {table}
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
    SELECT attname::text AS name
    FROM pg_attribute
    WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
"""


def store_result(columns: Sequence[str]) -> str:
    """Return the statement that stores *columns*; the first of them is the status."""
    values = [
        # date_done has no time zone. As for Celery, PostgreSQL converts the value to
        # the time zone of the session.
        f"${number}" + ("::timestamptz" if column == "date_done" else "")
        for number, column in enumerate(columns, 2)
    ]
    changes = [
        # A state without stamped headers keeps the headers that are stored.
        "stamps = coalesce(excluded.stamps, t.stamps)"
        if column == "stamps"
        else f"{column} = excluded.{column}"
        for column in columns
    ]
    return _STORE_RESULT.format(
        columns=", ".join(columns),
        values=", ".join(values),
        changes=", ".join(changes),
        fresh=len(columns) + 2,
    )


def read_result(columns: Sequence[str]) -> str:
    """Return the statement that reads *columns*, without a result that is too large."""
    result = "CASE WHEN octet_length(result) <= $2 THEN result END AS result"
    selected = [result if name == "result" else name for name in columns]
    return _READ_RESULT.format(columns=", ".join(selected))
