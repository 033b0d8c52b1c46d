"""Stores the final state of an aborted task, even if the result backend is away.

Celery gives up after a tenth of a second by default. That would lose the abort: the task
has stopped, its message is acknowledged, and its waiters would wait for ever.
"""

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from celery.exceptions import SoftTimeLimitExceeded

from aioabort.celery_compat import stored_state
from aioabort.orm import renew_connection
from aioabort.reconnect import Backoff, may_pass
from aioabort.timing import Timing
from aioabort.worker.shutdown import is_shutting_down

T = TypeVar("T")

#: Tries that may fail although the backend answers, and while the worker shuts down: the
#: first errors may be the last ones of an outage.
TRIES = 3

logger: logging.Logger = logging.getLogger(__name__)


def store_with_retries(
    backend: Any, task_id: str, store: Callable[[], T], timing: Timing
) -> T:
    """Return what *store* returns; call it again after an error while *backend* is away.

    Raises the error of *store* if no later try may succeed, if the backend answers, if it
    is away for longer than ``timing.store_retry_give_up``, and soon after the worker
    begins to shut down. The task occupies its slot of the pool until then.
    """
    deadline = time.monotonic() + timing.store_retry_give_up
    backoff = Backoff(timing.store_retry_first, timing.store_retry_longest)
    tries = 0
    while True:
        try:
            return store()
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            if not may_pass(error):
                raise
            renew_connection(backend)
            tries += is_shutting_down() or _answers(backend, task_id)
            if tries == TRIES or time.monotonic() > deadline:
                raise
            if not backoff.tries:
                logger.warning(
                    "Task %s: its final state cannot be stored yet: %s", task_id, error
                )
            time.sleep(backoff.next_delay())


def _answers(backend: Any, task_id: str) -> bool:
    """Return whether *backend* is not away; False if it cannot be read, either."""
    try:
        return stored_state(backend, task_id) is not None
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:  # noqa: BLE001 - each backend has its own errors
        return not may_pass(error)
