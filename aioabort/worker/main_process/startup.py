"""What the worker logs when it is ready: how aborts arrive, or why they cannot.

Only the settings are read. The main process opens no connection here, because it may
still fork.
"""

import logging
from typing import Any

from celery.exceptions import ImproperlyConfigured

from aioabort.concurrency.gevent import refuse_eventlet
from aioabort.poller import SLOWER_WHEN_NOTIFIED
from aioabort.settings import Settings, read_settings
from aioabort.worker.announcements import log_unabortable

logger: logging.Logger = logging.getLogger(__name__)


def report_at_start(sender: Any, **_: object) -> None:
    """Check the settings of the worker's app, and log how aborts arrive."""
    try:
        settings = read_settings(sender.app)
        refuse_eventlet()
    except ImproperlyConfigured as error:
        log_unabortable(str(error))
    else:
        logger.info("aioabort worker: aborts arrive %s", _describe(settings))


def _describe(settings: Settings) -> str:
    if not settings.notify:
        way = f"by a poll every {settings.poll_interval:g} s, without notifications"
    else:
        interval = settings.poll_interval * SLOWER_WHEN_NOTIFIED
        way = f"by notifications, and by a poll every {interval:g} s"
    return f"{way}, from {settings.listen_dsn}"
