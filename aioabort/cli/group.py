"""The command, and those below it."""

from typing import Final

import click

from aioabort.cli.abort import abort
from aioabort.cli.cleanup import cleanup
from aioabort.cli.doctor import doctor
from aioabort.cli.init_db import init_db
from aioabort.cli.listing import list_requests
from aioabort.cli.status import status
from aioabort.cli.watch import watch

HELP: Final = """
Abort tasks, and see what becomes of it.

\b
Exit codes:
  0    done
  1    no: the task had finished, say, or is unknown
  2    wrong usage, id or configuration
  3    refused by PostgreSQL: rights, a missing table
  4    PostgreSQL is away
  5    not done in time
  130  interrupted
"""


@click.group(
    "aioabort",
    commands=[abort, cleanup, doctor, init_db, list_requests, status, watch],
    help=HELP,
)
def main() -> None:
    """Hold the commands; Celery wants a function that it can wrap."""
