"""Aborts that are never lost, and results you can await, for Celery on PostgreSQL."""

from aioabort.exceptions import (
    AioabortError,
    ClientClosed,
    InvalidRequest,
    ResultsElsewhere,
    ResultTooLarge,
    StoreError,
    StoreUnavailable,
    TaskAborted,
    WaitTimeout,
    WrongLoop,
)
from aioabort.producer.client import AbortClient
from aioabort.producer.installing import install
from aioabort.producer.result import AbortableAsyncResult
from aioabort.records import (
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
    "ResultTooLarge",
    "ResultsElsewhere",
    "StoreError",
    "StoreUnavailable",
    "TaskAborted",
    "TaskSnapshot",
    "WaitTimeout",
    "WrongLoop",
    "current_token",
    "install",
]
