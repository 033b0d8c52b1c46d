-- Two processes that create a table at once fail on the catalogue's own unique index,
-- IF NOT EXISTS or not; the lock ends with the transaction.
SELECT pg_advisory_xact_lock(5279114);

-- The requests to abort, one row a task. Celery's own tables are not touched.
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
    -- The trace that the request was made in, in W3C's notation.
    traceparent  text
) WITH (fillfactor = 80);

-- For cleanup only.
CREATE INDEX IF NOT EXISTS {index} ON {request} (expires_at);

-- For requests whose grace is over, of which there are few at any time.
CREATE INDEX IF NOT EXISTS {kill_index} ON {request} (kill_at)
WHERE kill_at IS NOT NULL AND outcome IS NULL;
