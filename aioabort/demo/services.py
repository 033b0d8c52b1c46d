"""The services that both libraries use: database, broker, worker and ledger."""

import tempfile
from collections.abc import Generator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    contextmanager,
    suppress,
)
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from aioabort.demo import UnusableOption
from aioabort.demo.arguments import Options
from aioabort.demo.broker import filesystem_settings
from aioabort.demo.celery_app import app
from aioabort.demo.ledger import Entry, create_ledger, entry_of
from aioabort.demo.result_database import ResultDatabase, open_database
from aioabort.demo.worker_process import WorkerProcess, running_worker

CONNECT_TIMEOUT = 10

#: Seconds that a worker may take to shut down before it is killed. A warm shutdown
#: takes about six; it returns unfinished messages, which matters only to a broker that
#: outlives the demo.
SHUTDOWN_TIMEOUT = 15.0
SHORT_SHUTDOWN_TIMEOUT = 0.5

#: The ledger entry for tasks that write nothing.
UNUSED_ENTRY = 0


@dataclass(frozen=True)
class Services:
    """The running services."""

    folder: Path
    database: ResultDatabase
    settings: dict[str, Any]
    shutdown_timeout: float
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def worker(
        self, pool: str, concurrency: int
    ) -> AbstractAsyncContextManager[WorkerProcess]:
        """Run a worker for the duration of the block."""
        return running_worker(
            self.settings, self.folder, pool, concurrency, self.shutdown_timeout
        )

    def new_entry(self) -> tuple[int, Entry]:
        """Return the number of an unused ledger entry, and the entry."""
        number = next(self._numbers)
        return number, entry_of(self.settings["demo_ledger"], number)


@contextmanager
def open_services(options: Options, entries: int) -> Generator[Services]:
    """Start the services, with *entries* in the ledger; stop them after the block.

    Raises UnusableOption if --dsn or --broker names a service that does not answer.
    """
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="aioabort-demo-"))
        )
        ledger = folder / "ledger"
        create_ledger(ledger, entries + 1)
        settings: dict[str, Any] = {
            "aioabort_notify": options.notify,
            "demo_ledger": str(ledger),
            # Common in production; with it, celery.contrib.abortable loses the aborts of
            # queued tasks.
            "task_track_started": True,
            "task_default_queue": f"aioabort-demo-{uuid4().hex[:12]}",
            "worker_enable_remote_control": False,
        }
        if options.broker is None:
            settings |= filesystem_settings(folder)
        else:
            settings["broker_url"] = options.broker
        app.conf.update(settings)
        stack.enter_context(_checked_broker())
        database = stack.enter_context(open_database(options.dsn))
        settings["result_backend"] = database.result_backend
        app.conf.update(settings)
        timeout = SHUTDOWN_TIMEOUT if options.broker else SHORT_SHUTDOWN_TIMEOUT
        yield Services(folder, database, settings, timeout)


@contextmanager
def _checked_broker() -> Generator[None]:
    """Check that the broker answers; delete our queue after the block."""
    try:
        with app.connection_for_write(connect_timeout=CONNECT_TIMEOUT) as connection:
            connection.ensure_connection(max_retries=1, timeout=CONNECT_TIMEOUT)
    except Exception as error:  # noqa: BLE001 - each transport raises its own
        raise UnusableOption(f"--broker: {' '.join(str(error).split())}") from None
    try:
        yield
    finally:
        # The broker may be gone by then, and it may have other users, so nothing but
        # our own queue is deleted.
        with suppress(Exception), app.connection_for_write() as connection:
            channel: Any = connection.default_channel
            channel.queue_delete(app.conf.task_default_queue)
        app.close()
