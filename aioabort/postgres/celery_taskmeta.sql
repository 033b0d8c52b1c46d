-- Two processes that create a table at once fail on the catalogue's own unique index,
-- IF NOT EXISTS or not; the lock ends with the transaction.
SELECT pg_advisory_xact_lock(5279114);

-- As Celery's database backend creates them, but for the columns that came later.
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
