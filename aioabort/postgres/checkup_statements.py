"""What the checkup asks the server; nothing is changed by it."""

from typing import Final

REQUEST_COLUMNS: Final = (
    *("task_id", "requested_at", "expires_at", "reason", "requested_by", "kill_at"),
    *("seen_at", "seen_by", "outcome", "outcome_at", "traceparent"),
)

CHECK_SERVER: Final = """
    -- $1 our table, $2 Celery's, $3 their schema
    SELECT current_setting('server_version') AS server_version,
           pg_is_in_recovery() AS is_standby,
           to_regclass($2) IS NOT NULL AS has_results,
           has_schema_privilege(coalesce($3, current_schema()), 'CREATE') AS may_create,
           pg_notification_queue_usage() AS queue_usage,
           (SELECT array_agg(attname::text) FROM pg_attribute
            WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped)
               AS columns
"""

# DELETE is for cleanup, which is not every role's to do.
MISSING_RIGHTS: Final = """
    -- $1 our table, $2 Celery's, $3 its sequence
    SELECT privilege || ' on ' || relation AS missing
    FROM unnest(ARRAY[$1, $2]::text[]) AS relation,
         unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS privilege
    -- Of what does not exist, both are NULL.
    WHERE NOT has_table_privilege(to_regclass(relation), privilege)
    UNION ALL
    SELECT 'USAGE on ' || $3::text
    WHERE NOT has_sequence_privilege(to_regclass($3), 'USAGE')
"""

COUNT_REQUESTS: Final = """
    SELECT count(*) FILTER (WHERE outcome IS NULL) AS pending,
           count(*) FILTER (WHERE outcome IS NULL AND seen_at IS NULL) AS unseen,
           extract(epoch FROM clock_timestamp() - min(requested_at)
               FILTER (WHERE outcome IS NULL AND seen_at IS NULL))::float8
               AS oldest_unseen,
           count(*) FILTER (WHERE expires_at < now()) AS expired
    FROM {request}
"""
