"""When a task was published, in a header of its message.

Celery copies the header into the messages of the task's retries, and a redelivery is the
same message, so the time tells them from a new publication of the same id.
"""

import time
from typing import Any, Final

from celery import signals
from celery.app.task import Context

#: A number of seconds since 1970, by the clock of the process that published the task.
HEADER: Final = "aioabort_published_at"


def published_at(context: Context) -> float | None:
    """Return when the task was first published; None if the header is not there.

    It is not if the process that published the task had not imported aioabort.
    """
    time_of_header: object = getattr(context, HEADER, None)
    return float(time_of_header) if isinstance(time_of_header, int | float) else None


def _add_time(headers: dict[str, Any] | None = None, **_: object) -> None:
    if headers is not None:
        headers.setdefault(HEADER, time.time())


signals.before_task_publish.connect(_add_time, weak=False)
