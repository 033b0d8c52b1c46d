"""The server of the page: on loopback, with a worker, until Ctrl-C."""

import os
import socket
import sys
import webbrowser

import uvicorn
from anyio import create_task_group, to_thread

from aioabort import AbortClient
from aioabort.demo.arguments import Options
from aioabort.demo.bench import Bench
from aioabort.demo.display import Display
from aioabort.demo.errors import Unusable
from aioabort.demo.page.site import Site
from aioabort.demo.project import app
from aioabort.demo.runs import Job

HOST = "127.0.0.1"

#: Seconds that an answer may take when the server is to stop.
PATIENCE = 2


async def serve(options: Options, bench: Bench, job: Job, display: Display) -> None:
    """Serve the page for as long as the worker lives.

    Raises KeyboardInterrupt after Ctrl-C, and Unusable if the port is not free.
    """
    with _bound(options.port) as listening:
        async with (
            bench.worker(options.pool, options.concurrency),
            AbortClient(app) as client,
            create_task_group() as group,
        ):
            url = f"http://{HOST}:{listening.getsockname()[1]}/"
            display.say(f"The page is at {url} (Ctrl-C ends it)")
            if options.browser and _has_display():
                group.start_soon(_open_browser, url)
            site = Site(client, bench, job)
            await _Server(site, client).serve([listening])
            group.cancel_scope.cancel()


class _Server(uvicorn.Server):
    """Uvicorn, except that it does not wait for streams that go on and on."""

    def __init__(self, site: Site, client: AbortClient) -> None:
        super().__init__(
            uvicorn.Config(
                site.application(),
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=PATIENCE,
            )
        )
        self._client = client

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams by ending what they are about."""
        await self._client.aclose()
        await super().shutdown(sockets)


def _bound(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise Unusable(f"--port: {port} on {HOST}: {error.strerror}") from None


def _has_display() -> bool:
    """Whether a browser has a window to open in; one in this terminal would take it."""
    variables = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform == "darwin" or any(map(os.environ.get, variables))


async def _open_browser(url: str) -> None:
    await to_thread.run_sync(webbrowser.open, url, abandon_on_cancel=True)
