-- The columns that an older Celery did not create.
ALTER TABLE {task}
    ADD COLUMN IF NOT EXISTS children bytea,
    ADD COLUMN IF NOT EXISTS name     varchar(155),
    ADD COLUMN IF NOT EXISTS args     bytea,
    ADD COLUMN IF NOT EXISTS kwargs   bytea,
    ADD COLUMN IF NOT EXISTS worker   varchar(155),
    ADD COLUMN IF NOT EXISTS retries  integer,
    ADD COLUMN IF NOT EXISTS queue    varchar(155),
    ADD COLUMN IF NOT EXISTS stamps   bytea;
