"""Uvicorn with the page, on loopback, and a worker, until Ctrl-C."""

import os
import socket
import sys
import webbrowser

import uvicorn
from anyio import create_task_group, to_thread

from aioabort import AbortClient
from aioabort.demo import UnusableOption
from aioabort.demo.arguments import Options
from aioabort.demo.celery_app import app
from aioabort.demo.display import Display
from aioabort.demo.page.application import DemoPage
from aioabort.demo.runs import IndexJob
from aioabort.demo.services import Services

HOST = "127.0.0.1"

#: Seconds that open responses may take when the server stops.
SHUTDOWN_TIMEOUT = 2


async def serve(
    options: Options, services: Services, job: IndexJob, display: Display
) -> None:
    """Serve the page until Ctrl-C, which raises KeyboardInterrupt.

    Raises UnusableOption if the port is not free, and DemoError if the worker dies.
    """
    with _bind(options.port) as listening:
        async with (
            services.worker(options.pool, options.concurrency),
            AbortClient(app) as client,
            create_task_group() as group,
        ):
            url = f"http://{HOST}:{listening.getsockname()[1]}/"
            display.say(f"The page is at {url} (Ctrl-C ends it)")
            if options.browser and _has_display():
                group.start_soon(_open_browser, url)
            page = DemoPage(client, services, job)
            await _PageServer(page, client).serve([listening])
            group.cancel_scope.cancel()


class _PageServer(uvicorn.Server):
    """Uvicorn, except that it ends the event streams when it shuts down."""

    def __init__(self, page: DemoPage, client: AbortClient) -> None:
        super().__init__(
            uvicorn.Config(
                page.application(),
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
            )
        )
        self._client = client

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the client, which ends its streams, then shut down."""
        await self._client.aclose()
        await super().shutdown(sockets)


def _bind(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise UnusableOption(f"--port: {port} on {HOST}: {error.strerror}") from None


def _has_display() -> bool:
    """Whether a graphical browser can open; a text browser would take the terminal."""
    variables = ("DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform == "darwin" or any(map(os.environ.get, variables))


async def _open_browser(url: str) -> None:
    await to_thread.run_sync(webbrowser.open, url, abandon_on_cancel=True)
