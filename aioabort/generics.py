"""Celery's Task and results as the type checkers see them: generic.

Celery before 5.6 has classes that cannot be subscripted at run time.
"""

from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

from celery import Task as CeleryTask
from celery.result import AsyncResult as CeleryAsyncResult
from celery.result import EagerResult as CeleryEagerResult

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

if TYPE_CHECKING:
    GenericTask = CeleryTask
    GenericAsyncResult = CeleryAsyncResult
    GenericEagerResult = CeleryEagerResult
else:

    class GenericTask(CeleryTask, Generic[P, R_co]):
        """Celery's Task."""

        abstract = True

    class GenericAsyncResult(CeleryAsyncResult, Generic[R_co]):
        """Celery's AsyncResult."""

    class GenericEagerResult(CeleryEagerResult, Generic[R_co]):
        """Celery's EagerResult."""
