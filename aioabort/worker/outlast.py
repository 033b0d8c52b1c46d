"""An end that must be stored, while the result backend is away.

Celery gives a result up: by default, within a tenth of a second. For the end of an
aborted task that would be a lost abort: the task has stopped, its message is
acknowledged, and whoever awaits it never hears of it.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

#: Seconds after which the end is given up, as Celery does; the slot of the pool is
#: occupied until then.
LONGEST_OUTAGE = 600.0

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0

#: How often an error is taken for the end of an outage, rather than for a real one.
TRIES = 3

logger: logging.Logger = logging.getLogger(__name__)


def outlast(backend: Any, task_id: str, store: Callable[[], object]) -> None:
    """Call *store*; again after an error, as long as *backend* does not answer.

    Raises what *store* raises when the backend answers, or is away for ten minutes.
    """
    deadline = time.monotonic() + LONGEST_OUTAGE
    tries, pause = 0, FIRST_PAUSE
    while True:
        try:
            store()
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            tries += _answers(backend, task_id)
            if tries == TRIES or time.monotonic() > deadline:
                raise
            if pause == FIRST_PAUSE:
                logger.warning(
                    "Task %s: its end cannot be stored yet: %s", task_id, error
                )
            time.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        else:
            return


def _answers(backend: Any, task_id: str) -> bool:
    try:
        backend.get_task_meta(task_id, cache=False)
    except SoftTimeLimitExceeded:
        raise
    except NotImplementedError:
        return True
    except Exception:  # noqa: BLE001 - each backend has errors of its own
        return False
    return True
