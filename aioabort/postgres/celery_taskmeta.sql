-- Two processes that create a table at once fail on the catalogue's own unique index,
-- IF NOT EXISTS or not; the lock ends with the transaction.
SELECT pg_advisory_xact_lock(5279114);

-- As Celery's database backend creates them. Tables of an older Celery lack columns.
CREATE SEQUENCE IF NOT EXISTS {sequence_name};

CREATE TABLE IF NOT EXISTS {task} (
    id        integer NOT NULL PRIMARY KEY,
    task_id   varchar(155) UNIQUE,
    status    varchar(50),
    result    bytea,
    date_done timestamp,
    traceback text
);

ALTER TABLE {task}
    ADD COLUMN IF NOT EXISTS children bytea,
    ADD COLUMN IF NOT EXISTS name     varchar(155),
    ADD COLUMN IF NOT EXISTS args     bytea,
    ADD COLUMN IF NOT EXISTS kwargs   bytea,
    ADD COLUMN IF NOT EXISTS worker   varchar(155),
    ADD COLUMN IF NOT EXISTS retries  integer,
    ADD COLUMN IF NOT EXISTS queue    varchar(155),
    ADD COLUMN IF NOT EXISTS stamps   bytea;

CREATE INDEX IF NOT EXISTS {task_index} ON {task} (date_done);

CREATE SEQUENCE IF NOT EXISTS {group_sequence_name};

CREATE TABLE IF NOT EXISTS {group} (
    id         integer NOT NULL PRIMARY KEY,
    taskset_id varchar(155) UNIQUE,
    result     bytea,
    date_done  timestamp
);

CREATE INDEX IF NOT EXISTS {group_index} ON {group} (date_done);
