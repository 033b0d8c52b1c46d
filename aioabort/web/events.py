"""Server-sent events: what becomes of tasks, told as it happens."""

import json
from collections.abc import Sequence
from contextlib import aclosing
from http import HTTPStatus

from anyio import CancelScope, Lock, create_task_group, sleep
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from aioabort.exceptions import ClientClosed
from aioabort.facts import Json, facts
from aioabort.producer.client import AbortClient
from aioabort.web.refusals import refusal_of

#: Seconds; proxies close connections on which nothing comes for a minute or less.
KEEP_ALIVE = 15.0

#: The id of a stream's last event. A browser connects again when a stream ends, and
#: tells the last id that it got: then it is told to stop.
LAST_ID = "end"


def event(data: Json, *, name: str = "", is_last: bool = False) -> bytes:
    """Return one event; one without a *name* is a ``message`` to browsers."""
    lines = [f"data: {json.dumps(data, separators=(',', ':'), allow_nan=False)}"]
    if name:
        lines.insert(0, f"event: {name}")
    if is_last:
        lines.append(f"id: {LAST_ID}")
    return ("\n".join(lines) + "\n\n").encode()


class EventStream(Response):
    """A stream that ends with the last of its tasks, or when the reader has gone."""

    media_type = "text/event-stream"

    def __init__(self, client: AbortClient, task_ids: Sequence[str]) -> None:
        self.status_code = HTTPStatus.OK
        self.background: BackgroundTask | None = None
        # Nginx would keep events until it has some kilobytes of them.
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._client = client
        self._left = set(task_ids)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Send the events; a reader that goes away is let go of at once."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        async with create_task_group() as group:
            out = _Out(send, group.cancel_scope)
            group.start_soon(_until_gone, receive, group.cancel_scope)
            group.start_soon(_keep_alive, out)
            async with create_task_group() as tasks:
                for task_id in tuple(self._left):
                    tasks.start_soon(self._follow, task_id, out)
            await out.write(b"", more=False)
            group.cancel_scope.cancel()

    async def _follow(self, task_id: str, out: "_Out") -> None:
        try:
            async with aclosing(self._client.watch(task_id)) as snapshots:
                async for snapshot in snapshots:
                    if snapshot.is_finished:
                        self._left.discard(task_id)
                    await out.write(event(facts(snapshot), is_last=not self._left))
        except ClientClosed:
            # The application ends; the browser will look for the next one.
            return
        except Exception as error:  # noqa: BLE001 - the status has been sent long ago
            refusal = refusal_of(error)
            if refusal.status != HTTPStatus.SERVICE_UNAVAILABLE:
                self._left.discard(task_id)
            problem = {"task_id": task_id, "detail": refusal.detail}
            await out.write(event(problem, name="problem", is_last=not self._left))


class _Out:
    """Where events go, one at a time."""

    def __init__(self, send: Send, scope: CancelScope) -> None:
        self._send = send
        self._scope = scope
        self._turn = Lock()

    async def write(self, body: bytes, *, more: bool = True) -> None:
        async with self._turn:
            try:
                await self._send(
                    {"type": "http.response.body", "body": body, "more_body": more}
                )
            except OSError:
                # How some servers say that the reader has gone.
                self._scope.cancel()


async def _until_gone(receive: Receive, scope: CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _keep_alive(out: _Out) -> None:
    # At once as well: some proxies pass on nothing before the first bytes.
    while True:
        await out.write(b": keep-alive\n\n")
        await sleep(KEEP_ALIVE)
