"""Events over a real connection: what is told, until when, and who is let go of."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
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
from aioabort.web import Action, events, routes
from tests.integration.conftest import Network
from tests.integration.steps import end, until

MakeApp = Callable[..., Celery]

Browser = httpx.AsyncClient

BOUND = 20.0


async def alice(_: Request, __: Action, ___: str | None) -> str:
    """Let everybody in, as alice."""
    return "alice"


@pytest.fixture
def app(dsn: str, make_app: MakeApp) -> Celery:
    return make_app(dsn, aioabort_poll_interval=0.1)


@pytest.fixture
async def browser(client: AbortClient) -> AsyncIterator[Browser]:
    """Who asks a real server on loopback."""
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


async def told(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """Yield the events as a browser has them; the data is read from its JSON."""
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
    """First what is known, then each change, and with the end of the task the end."""
    seen = []
    async with browser.stream("GET", f"/{task_id}/events") as stream:
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["cache-control"] == "no-store"
        async for event in told(stream.aiter_lines()):
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


async def test_a_browser_does_not_come_back_after_the_end(
    app: Celery, browser: Browser, task_id: str
) -> None:
    """It connects again by itself, with the last id, and 204 tells it to stop."""
    await end(app, task_id, 1, states.SUCCESS)
    async with browser.stream("GET", f"/{task_id}/events") as stream:
        [event] = [
            event async for event in told(stream.aiter_lines()) if "data" in event
        ]

    again = await browser.get(
        f"/{task_id}/events", headers={"last-event-id": event["id"]}
    )

    assert again.status_code == 204


async def test_a_reader_that_goes_away_is_let_go_of(
    browser: Browser, client: AbortClient, task_id: str
) -> None:
    """A closed tab costs nothing: its watcher is released though no event is due."""
    async with browser.stream("GET", f"/{task_id}/events") as stream:
        await anext(told(stream.aiter_lines()))
        await until(lambda: waiters(client) == 1)

    await until(lambda: waiters(client) == 0)


async def test_a_reader_behind_a_middleware_is_let_go_of(
    client: AbortClient, task_id: str
) -> None:
    """Starlette's middleware stands between the server and the stream."""

    async def pass_on(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response

    application = Starlette(
        routes=routes(client, authorize=alice),
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)],
    )
    async with browsing(application) as browser:
        async with browser.stream("GET", f"/{task_id}/events") as stream:
            await anext(told(stream.aiter_lines()))
            await until(lambda: waiters(client) == 1)

        await until(lambda: waiters(client) == 0)


async def test_a_server_that_raises_has_no_reader(
    client: AbortClient, task_id: str
) -> None:
    """By ASGI 2.4 a server may refuse what is sent to nobody; that ends the stream."""

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
    browser: Browser, task_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comments, which readers ignore, keep proxies from closing it."""
    monkeypatch.setattr(events, "KEEP_ALIVE", 0.05)
    async with browser.stream("GET", f"/{task_id}/events") as stream:
        with fail_after(BOUND):
            comments = 0
            async for line in stream.aiter_lines():
                comments += line.startswith(":")
                if comments == 3:
                    break

    assert comments == 3


async def test_several_tasks_share_a_stream(app: Celery, browser: Browser) -> None:
    """It tells of each, and ends with the last of them."""
    await end(app, "a", 1, states.SUCCESS)
    seen = []
    async with browser.stream("GET", "/events?id=a&id=b&id=a") as stream:
        async for event in told(stream.aiter_lines()):
            snapshot = event["data"]
            seen.append((snapshot["task_id"], snapshot["state"], event.get("id")))
            if len(seen) == 2:
                await end(app, "b", 1, states.SUCCESS)

    assert sorted(seen[:2]) == [("a", "SUCCESS", None), ("b", "PENDING", None)]
    assert seen[2:] == [("b", "SUCCESS", "end")]


async def test_an_outage_is_waited_out(
    app: Celery, network: Network, make_app: MakeApp, task_id: str
) -> None:
    """While PostgreSQL is away nothing is told, and afterwards all of it."""
    far = make_app(network.dsn, aioabort_poll_interval=0.1)
    async with (
        AbortClient(far) as client,
        browsing(Starlette(routes=routes(client, authorize=alice))) as browser,
        browser.stream("GET", f"/{task_id}/events") as stream,
    ):
        seen = told(stream.aiter_lines())
        assert (await anext(seen))["data"]["state"] == "PENDING"
        await network.cut()
        await until(lambda: not client.health().is_connected)
        await network.mend()
        await end(app, task_id, 1, states.SUCCESS)

        assert (await anext(seen))["data"]["state"] == "SUCCESS"


async def test_a_refusal_ends_the_stream_with_a_problem(
    browser: Browser, database: "asyncpg.Connection[Any]", task_id: str
) -> None:
    """The status is sent by then: the problem is an event, which has a name."""
    async with browser.stream("GET", f"/{task_id}/events") as stream:
        seen = told(stream.aiter_lines())
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
    """An application that shuts down need not wait for its readers."""
    async with browser.stream("GET", f"/{task_id}/events") as stream:
        seen = told(stream.aiter_lines())
        await anext(seen)
        await client.aclose()
        rest = [event async for event in seen]

    assert rest == []


async def test_head_watches_nothing(
    browser: Browser, client: AbortClient, task_id: str
) -> None:
    """Whoever asks for the headers alone is not kept waiting."""
    answer = await browser.head(f"/{task_id}/events")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert waiters(client) == 0
