"""Test your own tasks: run a task body and abort it, without any service.

``aioabort.testing.fixtures`` has pytest fixtures that provide a real PostgreSQL.
"""

from aioabort.testing.abortable_run import AbortableRun, Ended, abortable_run

__all__ = ["AbortableRun", "Ended", "abortable_run"]
