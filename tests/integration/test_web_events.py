"""Event streams over a real connection: their events, and when they end."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest
import uvicorn
from anyio import fail_after, sleep
from celery import Celery, states
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from aioabort import AbortClient
from aioabort.timing import Timing
from aioabort.web import Action, events, routes
from tests.integration.steps import end
from tests.support.apps import MakeApp
from tests.support.network import Network
from tests.support.waiting import BOUND, until

Browser = httpx.AsyncClient


async def alice(_: Request, __: Action, ___: str | None) -> str:
    """Allow every caller, as alice."""
    return "alice"


@pytest.fixture
def app(dsn: str, make_app: MakeApp) -> Celery:
    return make_app(dsn, aioabort_poll_interval=0.1)


@pytest.fixture
async def browser(client: AbortClient) -> AsyncIterator[Browser]:
    """An HTTP client of a real server on loopback."""
    async with browsing(Starlette(routes=routes(client, authorize=alice))) as browser:
        yield browser


@asynccontextmanager
async def browsing(application: Starlette) -> AsyncIterator[Browser]:
    config = uvicorn.Config(
        application,
        port=0,
        lifespan="off",
        log_level="error",
        # For a stream that a failing test leaves open.
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with Browser(base_url=f"http://127.0.0.1:{port}", timeout=BOUND) as browser:
        yield browser
    server.should_exit = True
    await serving


async def parse_events(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """Yield the events as a browser parses them, with their data decoded."""
    event: dict[str, Any] = {}
    async for line in lines:
        name, _, value = line.partition(": ")
        if name:
            event[name] = json.loads(value) if name == "data" else value
        elif event:
            yield event
            event = {}


def waiters(client: AbortClient) -> int:
    return client.health().waiters


async def test_events_end_with_the_task(
    app: Celery, browser: Browser, client: AbortClient, task_id: str
) -> None:
    """The first event is the current state; the last one is the final state."""
    seen = []
    async with browser.stream("GET", f"/{task_id}/events") as stream:
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["cache-control"] == "no-store"
        async for event in parse_events(stream.aiter_lines()):
            seen.append(event["data"])
            match len(seen):
                case 1:
                    await end(app, task_id, {"files": 1}, "PROGRESS")
                case 2:
                    await client.abort(task_id, reason="enough")
                case 3:
                    await end(app, task_id, "part", states.SUCCESS)

    assert [snapshot["state"] for snapshot in seen] == [
        "PENDING",
        "PROGRESS",
        "ABORTED",
        "SUCCESS",
    ]
    assert seen[1]["result"] == {"files": 1}
    assert seen[2]["request"]["reason"] == "enough"
    assert seen[3]["is_finished"]
    assert waiters(client) == 0


async def test_a_browser_does_not_reconnect_after_the_end(
    app: Celery, browser: Browser, task_id: str
) -> None:
    """It reconnects once, with the last id; the response 204 stops it."""
    await end(app, task_id, 1, states.SUCCESS)
    async with browser.stream("GET", f"/{task_id}/events") as stream:
        [event] = [
            event
            async for event in parse_events(stream.aiter_lines())
            if "data" in event
        ]

    again = await browser.get(
        f"/{task_id}/events", headers={"last-event-id": event["id"]}
    )

    assert again.status_code == 204


async def test_a_disconnected_reader_is_released(
    browser: Browser, client: AbortClient, task_id: str
) -> None:
    """A closed tab costs nothing: its waiter is removed before the next event."""
    async with browser.stream("GET", f"/{task_id}/events") as stream:
        await anext(parse_events(stream.aiter_lines()))
        await until(lambda: waiters(client) == 1)

    await until(lambda: waiters(client) == 0)


async def test_a_disconnected_reader_behind_a_middleware_is_released(
    client: AbortClient, task_id: str
) -> None:
    """Starlette's middleware wraps ``receive`` and the stream."""

    async def pass_on(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response

    application = Starlette(
        routes=routes(client, authorize=alice),
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)],
    )
    async with browsing(application) as browser:
        async with browser.stream("GET", f"/{task_id}/events") as stream:
            await anext(parse_events(stream.aiter_lines()))
            await until(lambda: waiters(client) == 1)

        await until(lambda: waiters(client) == 0)


async def test_an_error_of_the_server_ends_the_stream(
    client: AbortClient, task_id: str
) -> None:
    """By ASGI 2.4, ``send()`` may raise OSError once the reader has disconnected."""

    async def receive() -> Message:
        await sleep(BOUND)
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError

    stream = events.EventStream(client, [task_id])
    with fail_after(BOUND / 2):
        await stream({"type": "http"}, receive, send)

    assert waiters(client) == 0


async def test_an_idle_stream_is_kept_alive(
    app: Celery, browser: Browser, task_id: str
) -> None:
    """Comments keep proxies from closing it; readers ignore them."""
    app.conf.aioabort_timing = Timing(keep_alive=0.05)
    async with browser.stream("GET", f"/{task_id}/events") as stream:
        with fail_after(BOUND):
            comments = 0
            async for line in stream.aiter_lines():
                comments += line.startswith(":")
                if comments == 3:
                    break

    assert comments == 3


async def test_several_tasks_share_a_stream(app: Celery, browser: Browser) -> None:
    """It has the events of each, and ends when all have ended."""
    await end(app, "a", 1, states.SUCCESS)
    seen = []
    async with browser.stream("GET", "/events?id=a&id=b&id=a") as stream:
        async for event in parse_events(stream.aiter_lines()):
            snapshot = event["data"]
            seen.append((snapshot["task_id"], snapshot["state"], event.get("id")))
            if len(seen) == 2:
                await end(app, "b", 1, states.SUCCESS)

    assert sorted(seen[:2]) == [("a", "SUCCESS", None), ("b", "PENDING", None)]
    assert seen[2:] == [("b", "SUCCESS", "end")]


async def test_a_stream_survives_an_outage(
    app: Celery, network: Network, make_app: MakeApp, task_id: str
) -> None:
    """Changes during an outage of PostgreSQL are sent after it."""
    far = make_app(network.dsn, aioabort_poll_interval=0.1)
    async with (
        AbortClient(far) as client,
        browsing(Starlette(routes=routes(client, authorize=alice))) as browser,
        browser.stream("GET", f"/{task_id}/events") as stream,
    ):
        seen = parse_events(stream.aiter_lines())
        assert (await anext(seen))["data"]["state"] == "PENDING"
        await network.cut()
        await until(lambda: not client.health().is_connected)
        await network.mend()
        await end(app, task_id, 1, states.SUCCESS)

        assert (await anext(seen))["data"]["state"] == "SUCCESS"


async def test_a_refusal_ends_the_stream_with_a_problem(
    browser: Browser, database: "asyncpg.Connection[Any]", task_id: str
) -> None:
    """The status has been sent by then, so the problem is a named event."""
    async with browser.stream("GET", f"/{task_id}/events") as stream:
        seen = parse_events(stream.aiter_lines())
        await anext(seen)
        await database.execute("DROP TABLE aioabort_request")
        problem = await anext(seen)

    assert problem["event"] == "problem"
    assert problem["data"] == {
        "task_id": task_id,
        "detail": "The database refused; the server's log says why",
    }


async def test_a_client_that_is_closed_ends_its_streams(
    browser: Browser, client: AbortClient, task_id: str
) -> None:
    """An application can shut down without waiting for its readers."""
    async with browser.stream("GET", f"/{task_id}/events") as stream:
        seen = parse_events(stream.aiter_lines())
        await anext(seen)
        await client.aclose()
        rest = [event async for event in seen]

    assert rest == []


async def test_head_watches_nothing(
    browser: Browser, client: AbortClient, task_id: str
) -> None:
    """HEAD returns the headers at once."""
    answer = await browser.head(f"/{task_id}/events")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert waiters(client) == 0
