"""Statements of requests and waits; ``{task}`` is Celery's table, ``{request}`` ours.

The statements that end in ``_ALONE`` are for results that are kept elsewhere, where
there is no row of Celery's to look at.
"""

from collections.abc import Iterable
from typing import Final

# Celery's row and ours change in one statement, under the lock of Celery's row: a
# task that ends at the same instant keeps its result or is asked to stop, never both.
# The order of the ids keeps two overlapping requests from deadlocking.
REQUEST: Final = """
    -- $1 task ids, $2 reason, $3 requested_by, $4 seconds until it may be cleaned up,
    -- $5 seconds of grace, $6 the trace
    WITH asked AS (
        SELECT DISTINCT task_id FROM unnest($1::text[]) AS ids (task_id)
    ), marked AS (
        INSERT INTO {task} AS t (id, task_id, status, date_done)
        SELECT nextval({sequence}), task_id, 'ABORTED', localtimestamp
        FROM asked
        ORDER BY task_id
        ON CONFLICT (task_id) DO UPDATE SET status = 'ABORTED'
        WHERE coalesce(t.status, 'PENDING') NOT IN ('SUCCESS', 'FAILURE', 'REVOKED')
        RETURNING t.task_id
    )
    INSERT INTO {request} AS r
        (task_id, reason, requested_by, expires_at, kill_at, traceparent)
    SELECT task_id, $2, $3, now() + make_interval(secs => $4),
        clock_timestamp() + make_interval(secs => $5), $6
    FROM marked
    ORDER BY task_id
    ON CONFLICT (task_id) DO UPDATE
    SET requested_at = excluded.requested_at, expires_at = excluded.expires_at,
        reason = excluded.reason, requested_by = excluded.requested_by,
        kill_at = excluded.kill_at, seen_at = NULL, seen_by = NULL,
        outcome = NULL, outcome_at = NULL, traceparent = excluded.traceparent
    WHERE r.outcome IS NOT NULL
    RETURNING task_id, requested_at, reason, requested_by, kill_at,
              seen_at, seen_by, outcome, outcome_at
"""

REQUEST_ALONE: Final = """
    -- $1 task ids, $2 reason, $3 requested_by, $4 seconds until it may be cleaned up,
    -- $5 seconds of grace, $6 the trace
    INSERT INTO {request} AS r
        (task_id, reason, requested_by, expires_at, kill_at, traceparent)
    SELECT DISTINCT ids.task_id, $2, $3, now() + make_interval(secs => $4),
        clock_timestamp() + make_interval(secs => $5), $6
    FROM unnest($1::text[]) AS ids (task_id)
    ORDER BY ids.task_id
    ON CONFLICT (task_id) DO UPDATE
    SET requested_at = excluded.requested_at, expires_at = excluded.expires_at,
        reason = excluded.reason, requested_by = excluded.requested_by,
        kill_at = excluded.kill_at, seen_at = NULL, seen_by = NULL,
        outcome = NULL, outcome_at = NULL, traceparent = excluded.traceparent
    WHERE r.outcome IS NOT NULL
    RETURNING task_id, requested_at, reason, requested_by, kill_at,
              seen_at, seen_by, outcome, outcome_at
"""

# The sub-select hides the number of ids from the planner, which would else take every
# execution for one that deserves a plan of its own: that costs more than to run it.
STATES: Final = """
    -- $1 task ids
    SELECT ids.task_id, t.status, r.requested_at, r.reason, r.requested_by, r.kill_at,
           extract(epoch FROM r.kill_at - clock_timestamp())::float8 AS kill_in,
           r.seen_at, r.seen_by, r.outcome, r.outcome_at
    FROM unnest((SELECT $1::text[])) AS ids (task_id)
    LEFT JOIN {task} AS t ON t.task_id = ids.task_id
    LEFT JOIN {request} AS r ON r.task_id = ids.task_id
"""

OBSERVE: Final = (
    STATES
    + """
    WHERE r.task_id IS NOT NULL OR t.status = 'ABORTED'
"""
)

OBSERVE_ALONE: Final = """
    -- $1 task ids
    SELECT task_id, NULL AS status, requested_at, reason, requested_by, kill_at,
           extract(epoch FROM kill_at - clock_timestamp())::float8 AS kill_in,
           seen_at, seen_by, outcome, outcome_at
    FROM {request}
    WHERE task_id = ANY($1::text[])
"""

# A request is known by its task and its moment: one that was settled may have been
# made anew for a later run of the same id.
RECORD_SEEN: Final = """
    -- $1 task ids, $2 requested_at, $3 seconds ago, $4 seen_by
    UPDATE {request} AS r
    SET seen_at = clock_timestamp() - make_interval(secs => n.age), seen_by = $4
    FROM unnest($1::text[], $2::timestamptz[], $3::float8[])
        AS n (task_id, requested_at, age)
    WHERE r.task_id = n.task_id AND r.requested_at = n.requested_at
        AND r.seen_at IS NULL
    RETURNING r.task_id, NULL AS outcome, n.age AS ago, r.traceparent,
        extract(epoch FROM r.seen_at - r.requested_at)::float8 AS after
"""

RECORD_OUTCOME: Final = """
    -- $1 task ids, $2 requested_at, $3 outcomes, $4 seconds ago
    UPDATE {request} AS r
    SET outcome = n.outcome,
        outcome_at = clock_timestamp() - make_interval(secs => n.age),
        -- Both moments are measured back from the statement that records them.
        seen_at = CASE WHEN r.seen_at IS NOT NULL THEN
            least(r.seen_at, clock_timestamp() - make_interval(secs => n.age)) END
    FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::float8[])
        AS n (task_id, requested_at, outcome, age)
    WHERE r.task_id = n.task_id AND r.requested_at = n.requested_at
        AND r.outcome IS NULL
    RETURNING r.task_id, r.outcome, n.age AS ago, r.traceparent,
        extract(epoch FROM r.outcome_at - r.requested_at)::float8 AS after
"""

# STARTED or a state of the task's own has been written over ABORTED, and nothing will be
# written over that: whoever awaits the task would take it for one that runs.
GIVE_UP_RESULTS: Final = """
    -- $1 task ids
    UPDATE {task}
    SET status = 'ABORTED'
    WHERE task_id = ANY($1::text[])
        AND status NOT IN ('SUCCESS', 'FAILURE', 'REVOKED', 'ABORTED')
"""

# For ends that the task's own process could not record. What Celery has stored of the
# task may be better than what is said of it here.
SETTLE: Final = """
    -- $1 task ids, $2 outcomes
    UPDATE {request} AS r
    SET outcome = CASE
            WHEN n.outcome <> 'failed'
                AND coalesce(t.status, '') NOT IN ('SUCCESS', 'FAILURE') THEN n.outcome
            WHEN r.seen_at IS NULL THEN 'too_late'
            WHEN t.status = 'SUCCESS' THEN 'returned'
            ELSE 'failed' END,
        outcome_at = clock_timestamp()
    FROM unnest($1::text[], $2::text[]) AS n (task_id, outcome)
    LEFT JOIN {task} AS t ON t.task_id = n.task_id
    WHERE r.task_id = n.task_id AND r.outcome IS NULL
    RETURNING r.task_id, requested_at, reason, requested_by, kill_at,
              seen_at, seen_by, r.outcome, outcome_at, traceparent,
              extract(epoch FROM outcome_at - requested_at)::float8 AS after
"""

SETTLE_ALONE: Final = """
    -- $1 task ids, $2 outcomes
    UPDATE {request} AS r
    SET outcome = CASE
            WHEN n.outcome = 'failed' AND r.seen_at IS NULL THEN 'too_late'
            ELSE n.outcome END,
        outcome_at = clock_timestamp()
    FROM unnest($1::text[], $2::text[]) AS n (task_id, outcome)
    WHERE r.task_id = n.task_id AND r.outcome IS NULL
    RETURNING r.task_id, requested_at, reason, requested_by, kill_at,
              seen_at, seen_by, r.outcome, outcome_at, traceparent,
              extract(epoch FROM outcome_at - requested_at)::float8 AS after
"""

# A request may be made more urgent, never less.
HASTEN: Final = """
    -- $1 task ids, $2 seconds of grace
    UPDATE {request}
    SET kill_at = least(kill_at, clock_timestamp() + make_interval(secs => $2))
    WHERE task_id = ANY($1::text[]) AND outcome IS NULL
    RETURNING task_id, requested_at, reason, requested_by, kill_at,
              seen_at, seen_by, outcome, outcome_at
"""

# Whoever gets the row back carries the kill out; nobody else does. The request stays
# pending: how the task ends is recorded by whoever sees that.
CLAIM_KILL: Final = """
    -- $1 task id, $2 requested_at
    UPDATE {request}
    SET kill_at = NULL
    WHERE task_id = $1 AND requested_at = $2 AND outcome IS NULL
        AND kill_at IS NOT NULL
    RETURNING task_id
"""

# Of processes that could not do it themselves.
CLAIM_OVERDUE: Final = """
    -- $1 seconds overdue
    UPDATE {request} AS r
    SET kill_at = NULL
    FROM (
        SELECT task_id FROM {request}
        WHERE kill_at < clock_timestamp() - make_interval(secs => $1)
            AND outcome IS NULL
        ORDER BY task_id
        LIMIT 100
        FOR UPDATE SKIP LOCKED
    ) AS overdue
    WHERE r.task_id = overdue.task_id
    RETURNING r.task_id
"""

# Celery's column has no time zone: what it stores is in that of the server's sessions.
_ROWS: Final = """
    SELECT ids.task_id, t.status, t.result, t.traceback,
           t.date_done::timestamptz AS date_done,
           r.requested_at, r.reason, r.requested_by, r.kill_at,
           extract(epoch FROM r.kill_at - clock_timestamp())::float8 AS kill_in,
           r.seen_at, r.seen_by, r.outcome, r.outcome_at
    FROM unnest((SELECT $1::text[])) AS ids (task_id)
    LEFT JOIN {task} AS t ON t.task_id = ids.task_id
    LEFT JOIN {request} AS r ON r.task_id = ids.task_id
"""

SNAPSHOT: Final = f"""
    -- $1 task ids
    {_ROWS}
"""

# Of the tasks that are only awaited, no row is sent before it has ended.
LOOK: Final = f"""
    -- $1 ids of tasks that are awaited, $2 ids of tasks whose every change matters
    {_ROWS}
    WHERE t.status IN ('SUCCESS', 'FAILURE', 'REVOKED')
        OR (r.outcome IS NOT NULL
            AND coalesce(t.status, 'PENDING') IN ('PENDING', 'ABORTED'))
    UNION ALL
    {_ROWS.replace("$1", "$2")}
"""

LIST_REQUESTS: Final = """
    -- $1 rows at most, $2 whether only those that are pending
    SELECT task_id, requested_at, reason, requested_by, kill_at,
           seen_at, seen_by, outcome, outcome_at
    FROM {request}
    WHERE outcome IS NULL OR NOT $2::bool
    ORDER BY requested_at DESC
    LIMIT $1
"""

# Whoever else deletes at the same time takes other rows.
DELETE_EXPIRED: Final = """
    -- $1 rows at most
    WITH gone AS (
        DELETE FROM {request}
        WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM {request}
            WHERE expires_at < now()
            ORDER BY expires_at
            LIMIT $1
            FOR UPDATE SKIP LOCKED
        ))
        RETURNING 1
    )
    SELECT count(*) AS deleted FROM gone
"""

_UNFINISHED: Final = """
    -- $1 the id to go on after, $2 how many ids at most, then the criteria
    SELECT t.task_id
    FROM {task} AS t
    LEFT JOIN {request} AS r ON r.task_id = t.task_id
    WHERE t.task_id > $1
        AND coalesce(t.status, 'PENDING') NOT IN ('SUCCESS', 'FAILURE', 'REVOKED')
        -- It stores no result, and has ended.
        AND (r.outcome IS NULL OR t.status NOT IN ('PENDING', 'ABORTED'))
"""

# When a task began, Celery does not store: the date_done of STARTED is NULL, and that of
# progress is so every other time. But the ids of rows are given in the order in which
# tasks begin, so whatever has a smaller one than a row of that time began before it.
#
# Celery writes date_done by the time zone of its session, which is the server's if
# nobody has chosen another: ours is the same, and so are the moments compared.
_CRITERIA: Final = {
    "task": "t.name = ${number}",
    "worker": "t.worker = ${number}",
    "queue": "t.queue = ${number}",
    "before": "t.id <= (SELECT max(id) FROM {{task}}"
    " WHERE date_done < ${number}::timestamptz)",
}


def unfinished(criteria: Iterable[str]) -> str:
    """Return the statement that finds tasks by *criteria*."""
    conditions = [
        _CRITERIA[name].format(number=number) for number, name in enumerate(criteria, 3)
    ]
    return " AND ".join([_UNFINISHED, *conditions]) + " ORDER BY t.task_id LIMIT $2"


NOTIFY: Final = """
    -- $1 channel, $2 payloads
    SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload
"""

# A queue of notifications that was full stays full, although everybody has read them,
# until somebody asks how full it is.
TRIM_QUEUE: Final = "SELECT pg_notification_queue_usage()"

TABLES_EXIST: Final = """
    -- $1 our table, $2 Celery's
    SELECT to_regclass($1) IS NOT NULL AS has_request,
           to_regclass($2) IS NOT NULL AS has_task
"""

SERVER_PID: Final = "SELECT pg_backend_pid()"

PING: Final = "SELECT 1"
