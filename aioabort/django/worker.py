"""What a worker of a Django project logs at its start about its database."""

from functools import partial
from typing import Any

from celery import Celery
from celery.exceptions import ImproperlyConfigured

from aioabort.concurrency.loop_thread import start_thread
from aioabort.django.checks import examine, problems
from aioabort.exceptions import StoreError
from aioabort.worker.announcements import log_unabortable


def check_at_start(sender: Any, **_: object) -> None:
    """Log why tasks cannot be aborted now, rather than with the first task.

    In a thread: the worker takes tasks meanwhile, and its pool may fork.
    """
    start_thread(partial(_check, sender.app), "aioabort-check")


def _check(app: Celery) -> None:
    try:
        for problem in problems(examine(app)):
            log_unabortable(problem)
    except StoreError as error:
        log_unabortable(str(error))
    except ImproperlyConfigured:
        pass  # aioabort.worker.main_process.startup logs it.
