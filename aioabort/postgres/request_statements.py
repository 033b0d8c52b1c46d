"""Statements about abort requests and for waiters; ``Tables.fill()`` completes them.

``{task}`` is Celery's result table, ``{request}`` the request table. A statement whose
name ends in ``_ALONE`` is used when Celery's results are not in PostgreSQL.

Statements lock rows in one order, or two that overlap would deadlock: rows of ``{task}``
before rows of ``{request}``, and in each table by id. Only statements with SKIP LOCKED
need no order, because they wait for no row.
"""

from typing import Final

# One statement changes both tables under the lock of Celery's row. A task that ends at
# the same moment either keeps its result or gets an abort request, never both.
# {unless_group} leaves out all tasks if one of the ids is that of a saved group.
#
# The sub-select hides the number of ids from the planner. With that number, the planner
# would make a new plan for each execution, which costs more than to execute it.
_MARK_ABORTED: Final = """
    -- $1 task ids, $2 reason, $3 requested_by, $4 seconds until cleanup may delete it,
    -- $5 seconds of grace, $6 traceparent
    WITH asked AS (
        INSERT INTO {task} AS t ({new_columns})
        SELECT {new_values}
        FROM (
            SELECT DISTINCT task_id FROM unnest((SELECT $1::text[])) AS ids (task_id)
            {unless_group}
        ) AS ids
        ORDER BY task_id COLLATE "C"
        ON CONFLICT (task_id) DO UPDATE
        SET status = 'ABORTED'
        WHERE coalesce(t.status, 'PENDING') NOT IN ('SUCCESS', 'FAILURE', 'REVOKED')
        RETURNING t.task_id
    )
"""

_MARK_NONE: Final = """
    -- $1 task ids, $2 reason, $3 requested_by, $4 seconds until cleanup may delete it,
    -- $5 seconds of grace, $6 traceparent
    WITH asked AS (
        SELECT DISTINCT task_id FROM unnest($1::text[]) AS ids (task_id)
    )
"""

# A request replaces an earlier one of the same task only after a run of the task has
# ended.
_INSERT_REQUESTS: Final = """
    INSERT INTO {request} AS r
        (task_id, reason, requested_by, expires_at, kill_at, traceparent)
    SELECT task_id, $2, $3, now() + make_interval(secs => $4),
           clock_timestamp() + make_interval(secs => $5), $6
    FROM asked
    ORDER BY task_id COLLATE "C"
    ON CONFLICT (task_id) DO UPDATE
    SET requested_at = excluded.requested_at,
        expires_at = excluded.expires_at,
        reason = excluded.reason,
        requested_by = excluded.requested_by,
        kill_at = excluded.kill_at,
        seen_at = NULL,
        seen_by = NULL,
        outcome = NULL,
        outcome_at = NULL,
        traceparent = excluded.traceparent
    WHERE r.outcome IS NOT NULL
    RETURNING r.task_id, {request_columns}
"""

REQUEST_ABORTS: Final = _MARK_ABORTED + _INSERT_REQUESTS

# The caller has read the results, and then names the earlier requests that were settled
# before. If a request was settled since, the task has ended since, and the caller has to
# read its result again: the id may not have been published anew.
REQUEST_ABORTS_ALONE: Final = _MARK_NONE + _INSERT_REQUESTS.replace(
    "WHERE r.outcome IS NOT NULL",
    """WHERE r.outcome IS NOT NULL
        -- $7 task ids with a settled request, $8 its requested_at
        AND (r.task_id, r.requested_at) IN (
            SELECT * FROM unnest($7::text[], $8::timestamptz[])
        )""",
)

FIND_GROUPS: Final = """
    -- $1 ids
    SELECT {group_id} AS group_id FROM {group} WHERE {group_id} = ANY($1::text[])
"""

REWRITE_REQUEST: Final = """
    -- $1 task id
    UPDATE {request}
    SET outcome = outcome
    WHERE task_id = $1
        AND outcome IS NULL
"""
# requested_at tells one request of a task from the next: after a run of the task has
# ended, the same id may be aborted again.
RECORD_SEEN: Final = """
    -- $1 task ids, $2 requested_at, $3 seconds ago, $4 seen_by
    {lock_unseen}
    UPDATE {request} AS r
    SET seen_at = clock_timestamp() - make_interval(secs => n.age),
        seen_by = $4
    FROM unnest($1::text[], $2::timestamptz[], $3::float8[])
        AS n (task_id, requested_at, age)
    JOIN locked USING (task_id)
    WHERE r.task_id = n.task_id
        AND r.requested_at = n.requested_at
        AND r.seen_at IS NULL
    RETURNING r.task_id, NULL AS outcome, n.age AS ago, r.traceparent,
              extract(epoch FROM r.seen_at - r.requested_at)::float8 AS after
"""

RECORD_OUTCOMES: Final = """
    -- $1 task ids, $2 requested_at, $3 outcomes, $4 seconds ago
    {lock_pending}
    UPDATE {request} AS r
    SET outcome = n.outcome,
        outcome_at = clock_timestamp() - make_interval(secs => n.age),
        -- Each moment is computed back from the statement that records it, so seen_at
        -- could otherwise be later than outcome_at.
        seen_at = CASE WHEN r.seen_at IS NOT NULL THEN
            least(r.seen_at, clock_timestamp() - make_interval(secs => n.age)) END
    FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::float8[])
        AS n (task_id, requested_at, outcome, age)
    JOIN locked USING (task_id)
    WHERE r.task_id = n.task_id
        AND r.requested_at = n.requested_at
        AND r.outcome IS NULL
    RETURNING r.task_id, r.outcome, n.age AS ago, r.traceparent,
              extract(epoch FROM r.outcome_at - r.requested_at)::float8 AS after
"""

# STARTED or a custom state has overwritten ABORTED, and no final state will follow: to
# a waiter, the task would look as if it were running.
RESET_TO_ABORTED: Final = """
    -- $1 task ids
    WITH locked AS (
        SELECT task_id
        FROM {task}
        WHERE task_id = ANY((SELECT $1::text[])::text[])
            AND status NOT IN ('SUCCESS', 'FAILURE', 'REVOKED', 'ABORTED')
        ORDER BY task_id COLLATE "C"
        FOR NO KEY UPDATE
    )
    UPDATE {task} AS t
    SET status = 'ABORTED'
    FROM locked
    WHERE t.task_id = locked.task_id
        AND t.status NOT IN ('SUCCESS', 'FAILURE', 'REVOKED', 'ABORTED')
"""

# For tasks whose own process could not record the outcome. A final state that Celery
# has stored decides over the outcome that is given here.
SETTLE_REQUESTS: Final = """
    -- $1 task ids, $2 outcomes
    {lock_pending}
    UPDATE {request} AS r
    SET outcome = CASE
            WHEN n.outcome <> 'failed'
                AND coalesce(t.status, '') NOT IN ('SUCCESS', 'FAILURE') THEN n.outcome
            WHEN r.seen_at IS NULL THEN 'too_late'
            WHEN t.status = 'SUCCESS' THEN 'returned'
            ELSE 'failed' END,
        outcome_at = clock_timestamp()
    FROM unnest($1::text[], $2::text[]) AS n (task_id, outcome)
    JOIN locked USING (task_id)
    LEFT JOIN {task} AS t ON t.task_id = n.task_id
    WHERE r.task_id = n.task_id
        AND r.outcome IS NULL
    RETURNING r.task_id, {request_columns}, r.traceparent,
              extract(epoch FROM r.outcome_at - r.requested_at)::float8 AS after
"""

SETTLE_REQUESTS_ALONE: Final = """
    -- $1 task ids, $2 outcomes
    {lock_pending}
    UPDATE {request} AS r
    SET outcome = CASE
            WHEN n.outcome = 'failed' AND r.seen_at IS NULL THEN 'too_late'
            ELSE n.outcome END,
        outcome_at = clock_timestamp()
    FROM unnest($1::text[], $2::text[]) AS n (task_id, outcome)
    JOIN locked USING (task_id)
    WHERE r.task_id = n.task_id
        AND r.outcome IS NULL
    RETURNING r.task_id, {request_columns}, r.traceparent,
              extract(epoch FROM r.outcome_at - r.requested_at)::float8 AS after
"""

# A later request may shorten the grace of an earlier one, never lengthen it. least()
# ignores NULL, which stands for no grace.
SHORTEN_GRACE: Final = """
    -- $1 task ids, $2 seconds of grace
    {lock_pending}
    UPDATE {request} AS r
    SET kill_at = least(r.kill_at, clock_timestamp() + make_interval(secs => $2))
    FROM locked
    WHERE r.task_id = locked.task_id
        AND r.outcome IS NULL
    RETURNING r.task_id, {request_columns}
"""

# One process gets the row back, and that process kills the task. The request stays
# pending until a process records the outcome.
CLAIM_KILL: Final = """
    -- $1 task id, $2 requested_at
    UPDATE {request}
    SET kill_at = NULL
    WHERE task_id = $1
        AND requested_at = $2
        AND outcome IS NULL
        AND kill_at IS NOT NULL
    RETURNING task_id
"""

# Kills that the processes of the tasks did not carry out.
CLAIM_OVERDUE_KILLS: Final = """
    -- $1 seconds overdue
    UPDATE {request} AS r
    SET kill_at = NULL
    FROM (
        SELECT task_id
        FROM {request}
        WHERE kill_at < clock_timestamp() - make_interval(secs => $1)
            AND outcome IS NULL
        ORDER BY task_id
        LIMIT 100
        FOR UPDATE SKIP LOCKED
    ) AS overdue
    WHERE r.task_id = overdue.task_id
    RETURNING r.task_id
"""

LIST_REQUESTS: Final = """
    -- $1 rows at most, $2 whether to list pending requests only
    SELECT r.task_id, {request_columns}
    FROM {request} AS r
    WHERE r.outcome IS NULL OR NOT $2::bool
    ORDER BY r.requested_at DESC
    LIMIT $1
"""

# SKIP LOCKED: two cleanups at the same time delete different rows.
DELETE_EXPIRED: Final = """
    -- $1 rows at most
    WITH gone AS (
        DELETE FROM {request}
        WHERE ctid = ANY(ARRAY(
            SELECT ctid
            FROM {request}
            WHERE expires_at < now()
            ORDER BY expires_at
            LIMIT $1
            FOR UPDATE SKIP LOCKED
        ))
        RETURNING 1
    )
    SELECT count(*) AS deleted FROM gone
"""

NOTIFY: Final = """
    -- $1 channel, $2 payloads
    SELECT pg_notify($1, payload) FROM unnest($2::text[]) AS payload
"""

# PostgreSQL frees a full notification queue only when a session calls this function,
# even after all listeners have read it.
TRIM_QUEUE: Final = "SELECT pg_notification_queue_usage()"
