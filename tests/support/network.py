"""The network between a client and PostgreSQL, which a test can break."""

import asyncio
import contextlib
import math
from urllib.parse import quote

import psycopg.conninfo

#: The writers to the client and to the server, of one connection.
Pair = tuple[asyncio.StreamWriter, asyncio.StreamWriter]


class Network:
    """A proxy on the loopback, in the running event loop, before the server of *dsn*."""

    def __init__(self, dsn: str) -> None:
        self._target = psycopg.conninfo.conninfo_to_dict(dsn)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._pairs: set[Pair] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._delay = 0.0
        #: Bytes after which a connection lets nothing more through to its client.
        self.most_bytes: float = math.inf
        self.connections = 0
        #: How many times a client has sent something.
        self.requests = 0

    @property
    def port(self) -> int:
        """The port of the proxy."""
        return self._port

    @property
    def dsn(self) -> str:
        """The address of the same database, through this network."""
        user = quote(str(self._target["user"]))
        return f"postgresql://{user}@127.0.0.1:{self._port}/{self._target['dbname']}"

    async def mend(self) -> None:
        """Let everything through, at once, on the same port as before."""
        self._delay = 0.0
        self._flows.set()
        if self._server is None:
            self._server = await asyncio.start_server(
                self._forward, "127.0.0.1", self._port
            )
            self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        if self._server is not None:
            server, self._server = self._server, None
            # asyncio leaves open what it has accepted and not passed on at the close.
            for listener in server.sockets:
                asyncio.get_running_loop().remove_reader(listener.fileno())
            await asyncio.sleep(0)
            server.close()
        for pair in list(self._pairs):
            for writer in pair:
                writer.transport.abort()

    def freeze(self) -> None:
        """Silently let nothing through on the connections that there are, for ever.

        New ones work, as they do when a firewall has forgotten the old ones.
        """
        self._flows.clear()
        self._flows = asyncio.Event()
        self._flows.set()

    def drop(self) -> None:
        """Silently let nothing through, on any connection, until mend()."""
        self._flows.clear()

    def delay(self, seconds: float) -> None:
        """Delay each piece of data by *seconds*, until mend()."""
        self._delay = seconds

    def half_close(self) -> None:
        """End the data from the server to each client; keep the other direction."""
        for client, _ in self._pairs:
            with contextlib.suppress(OSError, RuntimeError):
                client.write_eof()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        flows, writers = self._flows, [writer]
        try:
            far_reader, far_writer = await self._connect()
            writers.append(far_writer)
            if self._server is None:
                return  # cut meanwhile
            pair = (writer, far_writer)
            self._pairs.add(pair)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, far_writer, flows, 1))
                    group.create_task(self._pump(far_reader, writer, flows, 0))
            finally:
                self._pairs.discard(pair)
        except OSError:
            pass  # no program listens at the target
        finally:
            # However it ends: it may be cancelled before it has reached the target.
            for one in writers:
                one.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host = str(self._target.get("host", "localhost"))
        port = int(str(self._target.get("port", 5432)))
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        flows: asyncio.Event,
        requests: int,
    ) -> None:
        """Pass data on; each piece counts as so many *requests*."""
        passed = 0
        with contextlib.suppress(OSError, RuntimeError):
            while data := await reader.read(65_536):
                await flows.wait()
                passed += len(data)
                if not requests and passed > self.most_bytes:
                    await asyncio.Event().wait()
                if self._delay:
                    await asyncio.sleep(self._delay)
                self.requests += requests
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()
