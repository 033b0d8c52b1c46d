"""The command group ``celery aioabort``."""

from typing import Final

import click

from aioabort.cli.abort import abort
from aioabort.cli.cleanup import cleanup
from aioabort.cli.doctor import doctor
from aioabort.cli.init_db import init_db
from aioabort.cli.list_requests import list_requests
from aioabort.cli.status import status
from aioabort.cli.watch import watch

HELP: Final = """
Abort tasks, and show the state of tasks and abort requests.

\b
Exit codes:
  0    done
  1    no: for example, the task had ended, or is unknown
  2    wrong usage, id or configuration
  3    PostgreSQL refused: a privilege or a table is missing
  4    PostgreSQL cannot be reached
  5    not done in time
  130  interrupted
"""


@click.group(
    "aioabort",
    commands=[abort, cleanup, doctor, init_db, list_requests, status, watch],
    help=HELP,
)
def main() -> None:
    """Do nothing: Celery's entry point must be a function."""
