"""Statements that read tasks and their abort requests; ``Tables.fill()`` completes them.

``{task}`` is Celery's result table, ``{request}`` the request table. READ_ABORTS_ALONE is
used when Celery's results are not in PostgreSQL.
"""

from typing import Final

READ_STATES: Final = """
    -- $1 task ids
    SELECT ids.task_id, t.status, {request_columns}, {kill_in}
    FROM unnest((SELECT $1::text[])) AS ids (task_id)
    LEFT JOIN {task} AS t ON t.task_id = ids.task_id
    LEFT JOIN {request} AS r ON r.task_id = ids.task_id
"""

READ_ABORTS: Final = (
    READ_STATES
    + """
    WHERE r.task_id IS NOT NULL OR t.status = 'ABORTED'
"""
)

READ_ABORTS_ALONE: Final = """
    -- $1 task ids
    SELECT r.task_id, NULL AS status, {request_columns}, {kill_in}
    FROM {request} AS r
    WHERE r.task_id = ANY($1::text[])
"""

# The column of Celery's own table has no time zone. Celery writes it in the time zone of the session,
# and PostgreSQL converts it from that of ours, which is the same.
#
# Large results are left out: all waiters would wait for them. A query fetches 2 MB of
# results and tracebacks, and results below 1 kB in any case. So at 300 kB per second, it
# takes no longer than the statement timeout. PostgreSQL knows sizes without reading.
_READ_ROWS: Final = """
    SELECT r.task_id, r.status,
           CASE WHEN r.is_sent THEN {result_bytes} END AS result, r.content_encoding,
           CASE WHEN r.is_sent THEN r.traceback END AS traceback,
           CASE WHEN NOT r.is_sent THEN r.size END AS unread_size,
           r.version, r.date_done, {request_columns}, {kill_in}
    FROM (
        SELECT ids.task_id, t.status, t.result, {content_encoding} AS content_encoding,
               t.traceback, s.size, t.xmin AS version,
               s.size < 1000 OR s.size <= 2000000
                   AND sum(s.size) FILTER (WHERE s.size <= 2000000)
                   OVER (ROWS UNBOUNDED PRECEDING) <= 2000000 AS is_sent,
               t.date_done::timestamptz AS date_done, {request_columns}
        FROM unnest((SELECT $1::text[])) AS ids (task_id)
        LEFT JOIN {task} AS t ON t.task_id = ids.task_id
        LEFT JOIN {request} AS r ON r.task_id = ids.task_id
        CROSS JOIN LATERAL (
            SELECT coalesce(octet_length(t.result), 0)
                + coalesce(octet_length(t.traceback), 0) AS size
        ) AS s
        %s
    ) AS r
"""

READ_SNAPSHOTS: Final = f"""
    -- $1 task ids
    {_READ_ROWS % ""}
"""

# A task that is only awaited sends no row before it has ended.
_HAS_ENDED: Final = """
        WHERE t.status IN ('SUCCESS', 'FAILURE', 'REVOKED')
            OR (r.outcome IS NOT NULL
                AND coalesce(t.status, 'PENDING') IN ('PENDING', 'ABORTED'))
"""

READ_FOR_WAITERS: Final = f"""
    -- $1 ids of awaited tasks, $2 ids of watched tasks
    {_READ_ROWS % _HAS_ENDED}
    UNION ALL
    {_READ_ROWS.replace("$1", "$2") % ""}
"""

# Text is fetched as bytes: where its parts begin would depend on the encoding.
_READ_PART: Final = """
    -- $1 task id, $2 bytes before the part, $3 bytes at most
    SELECT xmin AS version, substring(%s FROM $2::int + 1 FOR $3::int) AS part
    FROM {task} AS r
    WHERE task_id = $1::text
"""
READ_PART: Final = {
    "result": _READ_PART % "{result_bytes}",
    "traceback": _READ_PART % "convert_to(traceback, 'UTF8')",
}
