-- If two processes create a table at the same time, one fails on a unique index of the
-- catalogue, even with IF NOT EXISTS. The lock ends with the transaction.
SELECT pg_advisory_xact_lock(5279114);

-- Abort requests, one row per task.
CREATE TABLE IF NOT EXISTS {request} (
    task_id      varchar(155) PRIMARY KEY,
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz NOT NULL,
    reason       text CHECK (octet_length(reason) <= 4096),
    requested_by text,
    kill_at      timestamptz,
    seen_at      timestamptz,
    seen_by      text,
    outcome      text,
    outcome_at   timestamptz,
    -- The W3C trace context of the client that made the request.
    traceparent  text
) WITH (fillfactor = 80);

-- For cleanup.
CREATE INDEX IF NOT EXISTS {index} ON {request} (expires_at);

-- For kills that are due. Few rows have a kill_at at any time.
CREATE INDEX IF NOT EXISTS {kill_index} ON {request} (kill_at)
WHERE kill_at IS NOT NULL AND outcome IS NULL;

-- Roles that may change Celery's results may abort tasks, whichever role creates the table.
DO $aioabort$
DECLARE
    role regrole;
BEGIN
    FOR role IN
        SELECT allowed.role
        FROM pg_class AS r,
            pg_class AS t,
            LATERAL (
                SELECT t.relowner
                UNION
                SELECT grantee FROM aclexplode(t.relacl)
                WHERE privilege_type = 'UPDATE' AND grantee <> 0
            ) AS allowed (role)
        WHERE r.oid = to_regclass({request_literal})
            AND t.oid = to_regclass({task_literal})
            AND r.relowner = current_user::regrole
            AND r.relowner <> allowed.role
    LOOP
        EXECUTE 'GRANT SELECT, INSERT, UPDATE ON ' || {request_literal}
            || ' TO ' || role::text;
    END LOOP;
END
$aioabort$;
