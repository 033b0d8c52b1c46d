"""What lies between one process and PostgreSQL: it drops, delays and half-closes."""

import asyncio
import contextlib
import threading
from collections.abc import Callable

from .processes import free_port


class Network:
    """A way to the port *target* of the loopback, in a thread of its own."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._delay = 0.0
        self._loop = asyncio.new_event_loop()
        self._flows = asyncio.Event()
        self._server: asyncio.Server | None = None
        #: The writers to the client and to the server, of each connection.
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.mend()

    def mend(self) -> None:
        """Let everything through, at once."""
        self._call(self._mend())

    def cut(self) -> None:
        """Reset every connection, and refuse new ones."""
        self._call(self._cut())

    def drop(self) -> None:
        """Let nothing through, and tell nobody."""
        self._call(self._do(self._flows.clear))

    def delay(self, seconds: float) -> None:
        """Hold up each piece of data."""

        def hold() -> None:
            self._delay = seconds

        self._call(self._do(hold))

    def half_close(self) -> None:
        """Tell the clients that the servers have nothing more to say; not the servers."""

        def close() -> None:
            for client, _ in self._pairs:
                with contextlib.suppress(OSError, RuntimeError):
                    client.write_eof()

        self._call(self._do(close))

    def close(self) -> None:
        """Cut it for good, and end its thread."""
        self.cut()
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, act: "asyncio._CoroutineLike[None]") -> None:
        asyncio.run_coroutine_threadsafe(act, self._loop).result(10)

    async def _do(self, act: Callable[[], object]) -> None:
        act()

    async def _mend(self) -> None:
        self._delay = 0.0
        self._flows.set()
        if self._server is None:
            self._server = await asyncio.start_server(
                self._forward, "127.0.0.1", self.port
            )

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for pair in list(self._pairs):
            for writer in pair:
                writer.transport.abort()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        # What was aborted is closed in the loop's next turn.
        await asyncio.sleep(0)

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        ends = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(
                "127.0.0.1", self._target
            )
            ends.append(far_writer)
            pair = (writer, far_writer)
            self._pairs.add(pair)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, far_writer))
                    group.create_task(self._pump(far_reader, writer))
            finally:
                self._pairs.discard(pair)
        except OSError:
            pass  # nobody listens at the target
        finally:
            # However it ends: it may be cancelled before it has reached the target.
            for end in ends:
                end.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            while data := await reader.read(65_536):
                await self._flows.wait()
                await asyncio.sleep(self._delay)
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()
