"""The agent's one connection to PostgreSQL, opened again whenever it is lost."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, Never, TypeVar

from anyio import create_task_group, fail_after
from celery import Celery

from aioabort.concurrency.switch_interval import short_switch_interval
from aioabort.exceptions import StoreBusy, StoreUnavailable
from aioabort.orm import with_orm_tables
from aioabort.postgres.connection import SerialConnection, UrgentExecutor, connect
from aioabort.postgres.errors import driver_errors
from aioabort.postgres.listener import watch_connection
from aioabort.postgres.request_store import RequestStore, open_request_store
from aioabort.postgres.result_store import ResultStore, open_result_store
from aioabort.reconnect import Connectivity, run_with_reconnect
from aioabort.settings import Settings

#: A value of so many bytes takes about 20 ms on its way.
LARGE: Final = 1_000_000

#: Connections for large values at the same time.
MOST_LARGE: Final = 4

#: Names the statements that find abort requests, for ``proving()``.
POLLS: Final = "polls"

T = TypeVar("T")


class AgentConnection:
    """The stores on the open connection, and the wait for them while there is none.

    A caller waits ``timing.ask_timeout`` seconds for the connection, then it gets
    StoreUnavailable. When PostgreSQL refuses (a missing right, say), it gets that error
    at once.
    """

    def __init__(self, settings: Settings, app: Celery) -> None:
        self._settings: Final = settings
        self._app: Final = app
        self._connectivity: Final = Connectivity(
            "aioabort worker", settings.poll_interval
        )
        self._requests: RequestStore | None = None
        self._results: ResultStore | None = None
        #: Set while there are stores, and while there is a refusal to raise.
        self._can_answer: Final = asyncio.Event()
        self._has_failed: Final = asyncio.Event()
        self._large: Final = asyncio.Semaphore(MOST_LARGE)
        #: What failed although there was a connection, and has not succeeded since.
        self._failing: Final[set[str]] = set()

    @property
    def is_away(self) -> bool:
        """Whether PostgreSQL was away, busy or refused at the latest poll."""
        can_poll = self._requests is not None and POLLS not in self._failing
        return self._connectivity.trouble is not None and not can_poll

    def raise_trouble(self) -> None:
        """Raise the error of the latest poll, if it failed."""
        if self.is_away:
            self._connectivity.raise_trouble()

    @contextmanager
    def proving(self, what: str) -> Generator[None]:
        """Note whether the statements of the block succeed; *what* names them.

        The outage goes on until all that failed has succeeded. Otherwise a server that
        refuses to write, a standby for one, would get a connection every moment: the
        connection works, and what was to be recorded ends it.
        """
        try:
            yield
        except StoreBusy:
            raise
        except StoreUnavailable:
            self.expect(what)
            raise
        self.proved(what)

    def expect(self, what: str) -> None:
        """Note that *what* fails until ``proved()``."""
        self._failing.add(what)

    def proved(self, what: str) -> None:
        """Note that *what* has succeeded."""
        self._failing.discard(what)
        self._recover()

    def delayed(self, error: StoreBusy) -> None:
        """Note that PostgreSQL is too busy for a poll; the connection stays open."""
        self.expect(POLLS)
        self._connectivity.lost(error)

    async def run(
        self, use: Callable[[], Awaitable[object]], on_lost: Callable[[], None]
    ) -> Never:
        """Call *use*, which calls ``opened()``, again after each loss, for ever.

        *on_lost* is called after each loss and each failed attempt to connect.
        """

        def forget_connection() -> None:
            self._close_stores()
            if self._is_refused():
                # Callers that wait for the connection get the refusal now.
                self._can_answer.set()
            on_lost()

        await run_with_reconnect(use, self._connectivity, forget_connection)

    @asynccontextmanager
    async def opened(
        self,
    ) -> AsyncGenerator[tuple[SerialConnection, RequestStore, RequestStore]]:
        """Open the connection for the time of the block, which its loss cancels.

        Yields it, the store for polls, and the store for all other statements.
        """
        dsn, timing = self._settings.listen_dsn, self._settings.timing
        async with connect(dsn, timing) as link, self._writer(link) as writer:
            settings = await with_orm_tables(self._app, self._settings)
            requests = await open_request_store(writer, settings)
            # Shows missing rights now, rather than at the first task.
            await requests.read_aborts([])
            if self._settings.stores_results:
                self._results = await open_result_store(
                    writer, requests.tables, self._settings
                )
            polls = requests.on(UrgentExecutor(link))
            await link.limit_lock_waits()
            self._has_failed.clear()
            self._requests = requests
            self._can_answer.set()
            self._recover()
            async with create_task_group() as group:
                for connection in {link, writer}:
                    group.start_soon(watch_connection, connection)
                group.start_soon(self._until_failed)
                yield link, polls, requests

    @asynccontextmanager
    async def _writer(self, link: SerialConnection) -> AsyncGenerator[SerialConnection]:
        """Yield the connection of the statements that may wait for locks.

        Behind a pooler nothing limits these waits, so the polls need a connection to
        themselves.
        """
        if not link.is_pooled:
            yield link
            return
        async with connect(link.dsn, link.timing) as writer:
            yield writer

    def open_requests(self) -> RequestStore | None:
        """Return the store of abort requests, or None while there is no connection."""
        return self._requests

    async def requests(self) -> RequestStore:
        """Return the store of abort requests; wait for the connection if necessary."""
        if self._requests is None:
            self._raise_refusal()
            with driver_errors(), fail_after(self._settings.timing.ask_timeout):
                await self._can_answer.wait()
        if self._requests is None:
            self._raise_refusal()
            raise StoreUnavailable("PostgreSQL is away: the connection was closed")
        return self._requests

    async def use_results(
        self, use: Callable[[ResultStore], Awaitable[T]], *, size: int = 0
    ) -> T:
        """Return what *use* does with the store of results; wait as ``requests()`` does.

        A statement with a large *size* in bytes gets a connection to itself: it would
        keep the polls from this one.
        """
        await self.requests()
        results = self._results
        if results is None:
            raise StoreUnavailable("PostgreSQL is away: the connection was closed")
        if size > LARGE:
            dsn, timing = self._settings.listen_dsn, self._settings.timing
            async with self._large, connect(dsn, timing) as own:
                return await use(results.on(own))
        try:
            with short_switch_interval(), self.proving("stores"):
                return await use(results)
        except StoreBusy:
            raise
        except StoreUnavailable:
            if results is self._results:
                # A server that has gone silent closes nothing: this timeout may be the
                # only sign. The next call waits for a new connection.
                self._close_stores()
                self._has_failed.set()
            raise

    def _recover(self) -> None:
        if self._connectivity.trouble is not None and not self._failing:
            self._connectivity.recovered()

    def _close_stores(self) -> None:
        self._requests = self._results = None
        self._can_answer.clear()

    def _is_refused(self) -> bool:
        return self.is_away and not isinstance(
            self._connectivity.trouble, StoreUnavailable
        )

    def _raise_refusal(self) -> None:
        if self._is_refused():
            self.raise_trouble()

    async def _until_failed(self) -> None:
        """Raise StoreUnavailable after a statement of ``use_results()`` failed."""
        await self._has_failed.wait()
        raise StoreUnavailable("PostgreSQL is away: a statement failed")
