"""``init-db``: create the table of requests, or print how."""

import click
from celery import Celery

from aioabort.cli.running import Answer, command
from aioabort.postgres import schema
from aioabort.settings import read_settings


@command("init-db")
@click.option(
    "--sql", is_flag=True, help="Print the SQL and connect to nothing: for a DBA."
)
async def init_db(app: Celery, *, sql: bool) -> Answer:
    """Create the table of requests, and Celery's for our own result backend."""
    settings = read_settings(app)
    tables = schema.tables_of(settings)
    if sql:
        text = schema.schema_sql(tables)
        if settings.stores_results:
            text += "\n" + schema.result_schema_sql(tables)
        return Answer({"sql": text}, [text.rstrip()])
    is_new = await schema.init_db(settings)
    done = "created" if is_new else "is there already"
    return Answer(
        {"table": tables.request, "created": is_new}, [f"{tables.request} {done}"]
    )
