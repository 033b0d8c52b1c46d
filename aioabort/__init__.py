"""Aborts that are never lost, and results you can await, for Celery on PostgreSQL."""

from typing import TYPE_CHECKING

from aioabort.client.client import AbortClient
from aioabort.client.result import AbortableAsyncResult, install
from aioabort.exceptions import (
    AioabortError,
    ClientClosed,
    InvalidRequest,
    ResultMissing,
    ResultsElsewhere,
    ResultTooLarge,
    StoreBusy,
    StoreError,
    StoreUnavailable,
    TaskAborted,
    WaitTimeout,
    WrongLoop,
)
from aioabort.models import (
    ABORTED,
    AbortReceipt,
    AbortRequest,
    ClientHealth,
    TaskSnapshot,
)
from aioabort.task import AbortableTask
from aioabort.worker.token import AbortToken, current_token

__all__ = [
    "ABORTED",
    "AbortClient",
    "AbortReceipt",
    "AbortRequest",
    "AbortToken",
    "AbortableAsyncResult",
    "AbortableTask",
    "AioabortError",
    "ClientClosed",
    "ClientHealth",
    "InvalidRequest",
    "ResultMissing",
    "ResultTooLarge",
    "ResultsElsewhere",
    "StoreBusy",
    "StoreError",
    "StoreUnavailable",
    "TaskAborted",
    "TaskSnapshot",
    "WaitTimeout",
    "WrongLoop",
    "current_token",
    "install",
]

__version__: str

# Hidden from type checkers, which would take any misspelt name for a string.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> str:
        """Return the version, which is looked up when it is first asked for."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version  # noqa: PLC0415

        return version("aioabort")
