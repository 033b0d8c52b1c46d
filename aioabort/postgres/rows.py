"""Makes records of the rows that statements return."""

import asyncpg

from aioabort.models import AbortRequest, Stage, TaskRow
from aioabort.postgres.tables import REQUEST_COLUMNS


def to_request(row: asyncpg.Record) -> AbortRequest:
    """Return the request of a row that has all its columns."""
    return AbortRequest(**{name: row[name] for name in REQUEST_COLUMNS})


def to_last_stage(row: asyncpg.Record) -> Stage:
    """Return the last stage of the request in *row*, as of now."""
    return Stage(
        task_id=row["task_id"],
        after=row["after"],
        ago=0.0,
        outcome=row["outcome"],
        traceparent=row["traceparent"],
    )


def to_task_row(row: asyncpg.Record) -> TaskRow:
    """Return a row of a statement that reads tasks."""
    return TaskRow(
        task_id=row["task_id"],
        state=row["status"],
        result=row.get("result"),
        content_encoding=row.get("content_encoding"),
        traceback=row.get("traceback"),
        date_done=row.get("date_done"),
        request=None if row["requested_at"] is None else to_request(row),
        kill_in=row["kill_in"],
        unread_size=row.get("unread_size"),
        version=row.get("version"),
    )
