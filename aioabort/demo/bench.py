"""The bench that both libraries are tried on: database, broker, worker and ledger."""

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

from aioabort.demo.arguments import Options
from aioabort.demo.broker import filesystem_settings
from aioabort.demo.database import Database, open_database
from aioabort.demo.errors import Unusable
from aioabort.demo.ledger import Entry, create_ledger, entry_of
from aioabort.demo.project import app
from aioabort.demo.worker import Worker, running_worker

CONNECT_TIMEOUT = 10

#: Seconds that a worker has to shut down: it takes about six, which only a broker
#: that stays is worth, to get back what the worker has not yet run.
PATIENCE = 15.0
IMPATIENCE = 0.5

#: The number of an entry for tasks that write nothing.
UNUSED = 0


@dataclass(frozen=True)
class Bench:
    """What both libraries share."""

    folder: Path
    database: Database
    settings: dict[str, Any]
    patience: float
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def worker(
        self, pool: str, concurrency: int
    ) -> AbstractAsyncContextManager[Worker]:
        """Run a worker for the time of the block."""
        return running_worker(
            self.settings, self.folder, pool, concurrency, self.patience
        )

    def new_entry(self) -> tuple[int, Entry]:
        """Return an entry of the ledger that is not in use, after its number."""
        number = next(self._numbers)
        return number, entry_of(self.settings["demo_ledger"], number)


@contextmanager
def open_bench(options: Options, entries: int) -> Generator[Bench]:
    """Set up a bench, with a ledger of so many *entries*, and take it down again.

    Raises Unusable if the options name a server or broker that does not answer.
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
            # Common in production, and what makes the original lose queued aborts.
            "task_track_started": True,
            "task_default_queue": f"aioabort-demo-{uuid4().hex[:12]}",
            "worker_enable_remote_control": False,
        }
        if options.broker is None:
            settings |= filesystem_settings(folder)
        else:
            settings["broker_url"] = options.broker
        app.conf.update(settings)
        stack.enter_context(_broker())
        database = stack.enter_context(open_database(options.dsn))
        settings["result_backend"] = database.result_backend
        app.conf.update(settings)
        patience = PATIENCE if options.broker else IMPATIENCE
        yield Bench(folder, database, settings, patience)


@contextmanager
def _broker() -> Generator[None]:
    """Have the broker checked, and our queue removed from it."""
    try:
        with app.connection_for_write(connect_timeout=CONNECT_TIMEOUT) as connection:
            connection.ensure_connection(max_retries=1, timeout=CONNECT_TIMEOUT)
    except Exception as error:  # noqa: BLE001 - each transport has its own
        raise Unusable(f"--broker: {' '.join(str(error).split())}") from None
    try:
        yield
    finally:
        # The broker may be gone, or somebody else's: our queue is all that we leave.
        with suppress(Exception), app.connection_for_write() as connection:
            channel: Any = connection.default_channel
            channel.queue_delete(app.conf.task_default_queue)
        app.close()
