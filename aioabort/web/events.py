"""Server-sent events: a stream of the changes of tasks."""

from collections.abc import Sequence
from contextlib import aclosing
from http import HTTPStatus

from anyio import CancelScope, Lock, create_task_group, sleep
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aioabort.client.client import AbortClient
from aioabort.exceptions import ClientClosed
from aioabort.serialization import Json, serialize
from aioabort.settings import read_settings
from aioabort.web.responses import dump_compact, to_http_error

#: The id of a stream's last event. When a stream ends, the browser reconnects and
#: sends the last id that it received; this one makes us answer 204, which stops it.
LAST_ID = "end"


def format_event(data: Json, *, name: str = "", is_last: bool = False) -> bytes:
    """Return one event; without a *name*, browsers dispatch it as ``message``."""
    lines = [f"data: {dump_compact(data)}"]
    if name:
        lines.insert(0, f"event: {name}")
    if is_last:
        lines.append(f"id: {LAST_ID}")
    return ("\n".join(lines) + "\n\n").encode()


class EventStream(Response):
    """A response that ends when all its tasks have ended, or the reader disconnects."""

    media_type = "text/event-stream"

    def __init__(self, client: AbortClient, task_ids: Sequence[str]) -> None:
        self.status_code = HTTPStatus.OK
        self.background: BackgroundTask | None = None
        # Without x-accel-buffering, nginx buffers some kilobytes of events.
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._client = client
        self._unfinished = set(task_ids)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the events; stop at once when the reader disconnects."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        async with create_task_group() as group:
            body = _EventBody(send, group.cancel_scope)
            group.start_soon(_cancel_on_disconnect, receive, group.cancel_scope)
            keep_alive = read_settings(self._client.app).timing.keep_alive
            group.start_soon(_keep_alive, body, keep_alive)
            async with create_task_group() as tasks:
                for task_id in tuple(self._unfinished):
                    tasks.start_soon(self._follow, task_id, body)
            await body.write(b"", more=False)
            group.cancel_scope.cancel()

    async def _follow(self, task_id: str, body: "_EventBody") -> None:
        try:
            async with aclosing(self._client.watch(task_id)) as snapshots:
                async for snapshot in snapshots:
                    if snapshot.is_finished:
                        self._unfinished.discard(task_id)
                    data = serialize(snapshot)
                    await body.write(format_event(data, is_last=not self._unfinished))
        except ClientClosed:
            # The application shuts down; the browser reconnects to the next process.
            return
        except Exception as raised:  # noqa: BLE001 - too late for another status
            error = to_http_error(raised)
            if error.status != HTTPStatus.SERVICE_UNAVAILABLE:
                self._unfinished.discard(task_id)
            problem = {"task_id": task_id, "detail": error.detail}
            is_last = not self._unfinished
            await body.write(format_event(problem, name="problem", is_last=is_last))


class _EventBody:
    """The response's body, which the tasks of a stream write to one at a time."""

    def __init__(self, send: Send, scope: CancelScope) -> None:
        self._send = send
        self._scope = scope
        self._lock = Lock()

    async def write(self, body: bytes, *, more: bool = True) -> None:
        async with self._lock:
            try:
                await self._send(
                    {"type": "http.response.body", "body": body, "more_body": more}
                )
            except OSError:
                # Some servers raise it when the reader has disconnected.
                self._scope.cancel()


async def _cancel_on_disconnect(receive: Receive, scope: CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _keep_alive(body: _EventBody, interval: float) -> None:
    # The first comment is sent at once: some proxies forward nothing, not even the
    # headers, before the first bytes of the body.
    while True:
        await body.write(b": keep-alive\n\n")
        await sleep(interval)
