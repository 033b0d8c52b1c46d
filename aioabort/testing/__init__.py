"""For the tests of your own tasks: a run that a test aborts, without any service.

``aioabort.testing.fixtures`` has a fixture of pytest's that gives a real PostgreSQL.
"""

from aioabort.testing.run import AbortableRun, Ended, abortable_run

__all__ = ["AbortableRun", "Ended", "abortable_run"]
