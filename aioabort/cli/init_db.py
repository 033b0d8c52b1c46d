"""``init-db``: create the tables, or print the SQL that creates them."""

import click
from celery import Celery

from aioabort.cli.command import CommandOutput, command
from aioabort.postgres import schema
from aioabort.postgres.locating import tables_of
from aioabort.settings import read_settings


@command("init-db")
@click.option(
    "--sql", is_flag=True, help="Print the SQL for a DBA, without connecting."
)
async def init_db(app: Celery, *, sql: bool) -> CommandOutput:
    """Create the table of abort requests.

    With aioabort's result backend, also create Celery's result tables.
    """
    settings = read_settings(app)
    if sql:
        tables = tables_of(settings)
        text = schema.schema_sql(tables)
        if settings.stores_results:
            text += "\n" + schema.result_schema_sql(tables)
        return CommandOutput({"sql": text}, [text.rstrip()])
    tables, is_new = await schema.init_db(settings)
    verb = "created" if is_new else "already exists"
    return CommandOutput(
        {"table": tables.request, "created": is_new}, [f"{tables.request} {verb}"]
    )
