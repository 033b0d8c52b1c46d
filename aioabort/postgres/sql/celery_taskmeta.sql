-- If two processes create a table at the same time, one fails on a unique index of the
-- catalogue, even with IF NOT EXISTS. The lock ends with the transaction.
SELECT pg_advisory_xact_lock(5279114);

-- As Celery's database backend creates them; celery_columns.sql adds later columns.
CREATE SEQUENCE IF NOT EXISTS {sequence_name};

CREATE TABLE IF NOT EXISTS {task} (
    id        integer NOT NULL PRIMARY KEY,
    task_id   varchar(155) UNIQUE,
    status    varchar(50),
    result    bytea,
    date_done timestamp,
    traceback text
);

CREATE INDEX IF NOT EXISTS {task_index} ON {task} (date_done);

CREATE SEQUENCE IF NOT EXISTS {group_sequence_name};

CREATE TABLE IF NOT EXISTS {group} (
    id         integer NOT NULL PRIMARY KEY,
    taskset_id varchar(155) UNIQUE,
    result     bytea,
    date_done  timestamp
);

CREATE INDEX IF NOT EXISTS {group_index} ON {group} (date_done);
