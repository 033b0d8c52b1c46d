"""A table of an older version, and the way back to celery.contrib.abortable."""

import psycopg

from .reader import Reader

PAGE = "docs/how-to/upgrading.md"

#: Reads results where aioabort is not installed.
UNINSTALLED = """
import runpy
import sys

sys.modules["aioabort"] = None
sys.argv = ["old_results.py", *sys.argv[1:]]
runpy.run_path("old_results.py")
"""

#: A class of ours among those that Celery restores.
OURS = "['TaskAborted', 'AioabortError', 'TaskRevokedError'"


def test_upgrading(reader: Reader) -> None:
    """The doctor names what is missing, and old results read as the page says."""
    reader.follow(until="doctor")
    reader.run("celery -A proj aioabort init-db")
    with psycopg.connect(reader.dsn, autocommit=True) as connection:
        connection.execute("ALTER TABLE aioabort_request DROP COLUMN traceparent")
    reader.follow(until="old_results.py $STOPPED")
    imported = "import aioabort, runpy; runpy.run_path('old_results.py')"
    assert OURS in reader.run(f'python -c "{imported}" $STOPPED')

    reader.give("uninstalled.py", UNINSTALLED)
    reader.replaced["python old_results.py"] = "python uninstalled.py"
    reader.follow()
