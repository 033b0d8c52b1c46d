"""The HTTP endpoints: responses, refusals, and what they never disclose."""

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest
from anyio import to_thread
from celery import Celery, states
from celery.app.task import Context
from fastapi import FastAPI
from fastapi import HTTPException as FastAPIError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Mount, Router

from aioabort import AbortClient, TaskAborted
from aioabort.serialization import serialize
from aioabort.timing import Timing
from aioabort.web import Action, Caller, routes
from tests.integration.conftest import Stranger
from tests.integration.steps import end
from tests.support.apps import MakeApp
from tests.support.network import Network

Browser = httpx.AsyncClient

DOT = re.DOTALL | re.MULTILINE

JSON = {"content-type": "application/json"}


async def by_header(
    request: Request, action: Action, task_id: str | None
) -> Caller | str | None:
    """The caller's name is in a header; the gateway may act on behalf of others."""
    name = request.headers.get("x-user")
    if name == "gateway":
        return Caller(name, on_behalf=True)
    if name == f"no-{action}" or (task_id or "").startswith("secret"):
        return None
    return name


@pytest.fixture
async def browser(client: AbortClient) -> AsyncIterator[Browser]:
    """An HTTP client named alice; the endpoints are mounted below /tasks."""
    async with browsing(mounted(client)) as browser:
        yield browser


@asynccontextmanager
async def browsing(app: Any, base: str = "http://site/tasks") -> AsyncIterator[Browser]:
    async with Browser(
        transport=httpx.ASGITransport(app, raise_app_exceptions=False),
        base_url=base,
        headers={"x-user": "alice"},
    ) as browser:
        yield browser


def mounted(client: AbortClient, **options: Any) -> Starlette:
    options.setdefault("authorize", by_header)
    return Starlette(routes=[Mount("/tasks", routes=routes(client, **options))])


# A task.


async def test_a_task_is_returned(app: Celery, browser: Browser, task_id: str) -> None:
    """State, date and value, and null for a missing abort request."""
    await end(app, task_id, {"files": 3}, states.SUCCESS)

    answer = await browser.get(f"/{task_id}")

    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    told = answer.json()
    assert told.pop("date_done") is not None
    assert told == {
        "task_id": task_id,
        "state": "SUCCESS",
        "is_finished": True,
        "is_aborted": False,
        "result": {"files": 3},
        "error": None,
        "request": None,
    }


async def test_an_error_has_a_type_and_a_message(
    app: Celery, browser: Browser, task_id: str
) -> None:
    """The response does not include the traceback."""
    error = TaskAborted("why", "bob", task_id)
    await to_thread.run_sync(
        lambda: app.backend.store_result(
            task_id, error, states.REVOKED, traceback="File secret.py"
        )
    )

    answer = await browser.get(f"/{task_id}")

    assert answer.json()["error"] == {"type": "TaskAborted", "message": str(error)}
    assert answer.json()["result"] is None
    assert "secret.py" not in answer.text


async def test_what_json_cannot_hold_is_no_error(
    dsn: str, make_app: MakeApp, task_id: str
) -> None:
    """Of a pickled value, the response has what JSON can hold, or the type."""
    app = make_app(
        dsn, result_serializer="pickle", result_accept_content=["pickle", "json"]
    )
    value = {"nan": math.nan, 1: {b"\xff"}, "app": object(), "half": "\udc80"}
    await end(app, task_id, value, states.SUCCESS)
    async with AbortClient(app) as client, browsing(mounted(client)) as browser:
        answer = await browser.get(f"/{task_id}")

    assert answer.json()["result"] == {
        "nan": "nan",
        "1": ["/w=="],
        "app": {"type": "object"},
        "half": "\udc80",
    }


async def test_a_result_that_cannot_be_read_is_one_line(
    app: Celery,
    browser: Browser,
    database: "asyncpg.Connection[Any]",
    task_id: str,
) -> None:
    """A payload that Celery cannot decode is a 500, which does not quote it."""
    await end(app, task_id, 1, states.SUCCESS)
    await database.execute("UPDATE celery_taskmeta SET result = 'no payload'")

    answer = await browser.get(f"/{task_id}")

    assert answer.status_code == 500
    assert answer.json()["detail"].startswith("The result cannot be read: ")


async def test_a_task_without_trace_is_not_found(
    browser: Browser, task_id: str
) -> None:
    """404: it is unknown or queued; PostgreSQL knows neither."""
    answer = await browser.get(f"/{task_id}")

    assert answer.status_code == 404
    assert answer.json()["detail"].startswith("No trace of this task")
    assert answer.json()["state"] == "PENDING"


@pytest.mark.parametrize("task_id", ["x" * 156, "a%00b"])
@pytest.mark.parametrize("path", ["/{}", "/{}/events", "/events?id={}", "/{}/abort"])
async def test_an_id_that_no_task_can_have_is_refused(
    browser: Browser, path: str, task_id: str
) -> None:
    """A malformed id is a 422 everywhere, without a query."""
    method = "POST" if "abort" in path else "GET"

    answer = await browser.request(method, path.format(task_id), headers=JSON)

    assert answer.status_code == 422
    assert "task id" in answer.json()["detail"].lower()


@pytest.mark.parametrize("asked", [False, True])
async def test_arguments_are_returned_if_enabled(
    dsn: str, make_app: MakeApp, task_id: str, asked: bool
) -> None:
    """A task's arguments are in the response only with ``arguments=True``."""
    app = make_app(dsn, result_extended=True)

    request = Context(id=task_id, task="proj.pay", args=["4111 1111"], kwargs={})
    await to_thread.run_sync(
        lambda: app.backend.store_result(task_id, 1, states.SUCCESS, request=request)
    )
    async with (
        AbortClient(app) as client,
        browsing(mounted(client, arguments=asked)) as browser,
    ):
        answer = await browser.get(f"/{task_id}")

    assert ("4111 1111" in answer.text) is asked
    assert answer.json().get("name") == ("proj.pay" if asked else None)


# Aborts.


async def test_an_abort_is_stored_with_its_caller(
    browser: Browser, client: AbortClient, task_id: str
) -> None:
    """The name comes from ``authorize``, the reason from the body."""
    answer = await browser.post(f"/{task_id}/abort", json={"reason": "wrong file"})

    assert answer.status_code == 202
    request = (await client.snapshot(task_id)).request
    assert request is not None
    assert (request.reason, request.requested_by) == ("wrong file", "alice")
    assert answer.json() == {
        "task_id": task_id,
        "answer": "requested",
        "state": None,
        "request": serialize(request),
    }


async def test_an_abort_needs_no_body(browser: Browser, task_id: str) -> None:
    """A reason is not required."""
    answer = await browser.post(f"/{task_id}/abort", headers=JSON)

    assert answer.status_code == 202


async def test_a_second_abort_returns_the_first(browser: Browser, task_id: str) -> None:
    """The first abort request stays, and the second caller receives it."""
    await browser.post(f"/{task_id}/abort", json={})
    answer = await browser.post(
        f"/{task_id}/abort", json={"reason": "me too"}, headers={"x-user": "bob"}
    )

    assert answer.status_code == 202
    assert answer.json()["answer"] == "requested_before"
    assert answer.json()["request"]["requested_by"] == "alice"


async def test_a_task_that_has_ended_is_a_conflict(
    app: Celery, browser: Browser, task_id: str
) -> None:
    """Nothing is changed, and the response has the final state."""
    await end(app, task_id, 1, states.SUCCESS)

    answer = await browser.post(f"/{task_id}/abort", json={})

    assert answer.status_code == 409
    assert (answer.json()["answer"], answer.json()["state"]) == ("finished", "SUCCESS")
    assert (await browser.get(f"/{task_id}")).json()["result"] == 1


async def test_grace_ends_in_a_kill(browser: Browser, task_id: str) -> None:
    """The seconds in the body become the time of the kill."""
    answer = await browser.post(f"/{task_id}/abort", json={"grace": 30})

    assert answer.json()["request"]["kill_at"] is not None


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not valid JSON"),
        (b"\xff", 400, "not valid JSON"),
        (b"[" * 16_000, 400, "not valid JSON"),
        (b"[]", 422, "a JSON object"),
        (b'{"reasno": 1}', 422, "Unknown field 'reasno'"),
        (b'{"requested_by": "eve"}', 422, "Unknown field 'requested_by'"),
        (b'{"reason": 1}', 422, "reason is a string"),
        (b'{"reason": "a\\u0000b"}', 422, "NUL"),
        (b'{"grace": -1}', 422, "grace is a number"),
        (b'{"grace": NaN}', 422, "grace is a number"),
        (b'{"reason": "' + b"x" * 5_000 + b'"}', 422, "at most 4096 bytes"),
        (b'{"reason": "' + b"x" * 20_000 + b'"}', 413, "more than 16384 bytes"),
    ],
)
async def test_a_body_that_is_wrong_is_refused(
    browser: Browser, task_id: str, body: bytes, status: int, message: str
) -> None:
    """One line says what is wrong, and no request is stored."""
    answer = await browser.post(f"/{task_id}/abort", content=body, headers=JSON)

    assert answer.status_code == status
    assert message in answer.json()["detail"]
    assert (await browser.get(f"/{task_id}")).status_code == 404


async def test_a_gateway_names_its_users(browser: Browser, task_id: str) -> None:
    """A gateway may set ``requested_by`` in the body."""
    answer = await browser.post(
        f"/{task_id}/abort",
        json={"requested_by": "carol"},
        headers={"x-user": "gateway"},
    )

    assert answer.status_code == 202
    assert answer.json()["request"]["requested_by"] == "carol"


# Authorization.


@pytest.mark.parametrize("user", ["", "no-abort"])
async def test_a_caller_who_is_not_allowed_changes_nothing(
    browser: Browser, task_id: str, user: str
) -> None:
    """None refuses, and so does the empty name of an anonymous user."""
    answer = await browser.post(f"/{task_id}/abort", json={}, headers={"x-user": user})

    assert (answer.status_code, answer.json()) == (403, {"detail": "Not allowed"})
    assert (await browser.get(f"/{task_id}")).status_code == 404


@pytest.mark.parametrize(
    "path", ["/secret-1", "/secret-1/events", "/events?id=a&id=secret-1"]
)
async def test_a_task_of_another_user_is_refused(browser: Browser, path: str) -> None:
    """``authorize`` receives each id, so it can check the task's owner."""
    assert (await browser.get(path)).status_code == 403


async def test_the_list_may_be_refused(browser: Browser) -> None:
    """A caller who may read a task need not be allowed to list all requests."""
    answer = await browser.get("/", headers={"x-user": "no-list"})

    assert answer.status_code == 403


async def test_an_exception_of_authorize_is_the_response(
    client: AbortClient, task_id: str
) -> None:
    """An application may require a log-in, or return 404 for unknown tasks."""

    async def authorize(*_: object) -> None:
        raise HTTPException(401, headers={"www-authenticate": "Basic"})

    async with browsing(mounted(client, authorize=authorize)) as browser:
        answer = await browser.get(f"/{task_id}")

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Basic"


async def test_true_is_not_a_caller(client: AbortClient, task_id: str) -> None:
    """A wrong return value of ``authorize`` allows nothing."""

    async def authorize(*_: object) -> Any:
        return True

    async with browsing(mounted(client, authorize=authorize)) as browser:
        answer = await browser.post(f"/{task_id}/abort", json={})

    assert answer.status_code == 500
    assert (await client.snapshot(task_id)).request is None


def test_authorize_has_no_default(client: AbortClient) -> None:
    """The application must decide who may use the endpoints."""
    with pytest.raises(TypeError, match="authorize"):
        routes(client)  # type: ignore[call-arg]


# Other sites.


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": "http://site"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://site.evil.example"},
        {"origin": "http://[bad"},
    ],
)
async def test_another_site_cannot_use_a_browsers_cookies(
    browser: Browser, task_id: str, headers: dict[str, str]
) -> None:
    """The browser names the site of the page, and other sites are refused."""
    answer = await browser.post(f"/{task_id}/abort", json={}, headers=headers)

    assert answer.status_code == 403
    assert "another site" in answer.json()["detail"]
    assert (await browser.get(f"/{task_id}")).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "same-origin", "origin": "https://behind.proxy"},
        {"sec-fetch-site": "none"},
        # A proxy has ended the TLS.
        {"origin": "https://site"},
        {"sec-fetch-site": "cross-site", "origin": "https://admin.example"},
    ],
)
async def test_the_sites_own_pages_may_ask(
    client: AbortClient, task_id: str, headers: dict[str, str]
) -> None:
    """So may origins that the application trusts."""
    app = mounted(client, trusted_origins=["https://admin.example"])
    async with browsing(app) as browser:
        answer = await browser.post(f"/{task_id}/abort", json={}, headers=headers)

    assert answer.status_code == 202


@pytest.mark.parametrize(
    "media_type", ["", "text/plain", "application/x-www-form-urlencoded"]
)
async def test_a_form_cannot_abort(
    browser: Browser, task_id: str, media_type: str
) -> None:
    """Without a CORS preflight, another site cannot send ``application/json``."""
    answer = await browser.post(
        f"/{task_id}/abort", content=b"{}", headers={"content-type": media_type}
    )

    assert answer.status_code == 415


async def test_get_never_aborts(browser: Browser, task_id: str) -> None:
    """A link or an image aborts nothing."""
    assert (await browser.get(f"/{task_id}/abort")).status_code == 405


# Frameworks.


async def test_mounted_in_fastapi(client: AbortClient, task_id: str) -> None:
    """FastAPI's own errors look like ours, and FastAPI does not change ours."""

    async def authorize(_: Request, action: Action, __: str | None) -> str:
        if action == "list":
            raise FastAPIError(402, "Pay first")
        return "alice"

    app = FastAPI()
    app.mount("/tasks", Router(routes(client, authorize=authorize)))
    async with browsing(app) as browser:
        unknown = await browser.get(f"/{task_id}")
        asked = await browser.post(f"/{task_id}/abort", json={"reason": "no"})
        known = await browser.get(f"/{task_id}")
        listed = await browser.get("/")

    statuses = [answer.status_code for answer in (unknown, asked, known, listed)]
    assert statuses == [404, 202, 200, 402]
    assert known.json()["request"]["requested_by"] == "alice"
    assert listed.json() == {"detail": "Pay first"}


async def test_routes_among_an_applications_own(
    client: AbortClient, task_id: str
) -> None:
    """They need no mount: FastAPI's router accepts them directly."""
    app = FastAPI()
    app.router.routes.extend(routes(client, authorize=by_header))
    async with browsing(app, "http://site") as browser:
        answer = await browser.post(f"/{task_id}/abort", json={})

    assert answer.status_code == 202


# The list.


async def test_requests_are_listed(browser: Browser, client: AbortClient) -> None:
    """Newest first; with ``pending=true`` only requests without an outcome."""
    for number in range(3):
        await client.abort(f"task-{number}", reason=f"reason {number}")

    listed = (await browser.get("/", params={"limit": 2})).json()["requests"]
    pending = (await browser.get("/", params={"pending": "true"})).json()["requests"]

    assert [known["task_id"] for known in listed] == ["task-2", "task-1"]
    assert listed[0]["reason"] == "reason 2"
    assert len(pending) == 3


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=", "limit=1e3", "pending=1"]
)
async def test_a_query_that_is_wrong_is_refused(browser: Browser, query: str) -> None:
    """One line says which values the parameter accepts."""
    answer = await browser.get(f"/?{query}")

    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(query.partition("=")[0])


@pytest.mark.parametrize("count", [0, 101])
async def test_events_are_of_a_bounded_number_of_tasks(
    browser: Browser, count: int
) -> None:
    """A stream needs at least one task, and accepts at most 100."""
    answer = await browser.get("/events", params={"id": [str(n) for n in range(count)]})

    assert answer.status_code == 422


# The database.


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/some-id"), ("POST", "/some-id/abort")],
)
async def test_a_database_that_is_away_is_one_line(
    network: Network, make_app: MakeApp, method: str, path: str
) -> None:
    """503, without an address or the driver's message."""
    async with (
        AbortClient(make_app(network.dsn)) as client,
        browsing(mounted(client)) as browser,
    ):
        await network.cut()
        answer = await browser.request(method, path, headers=JSON)

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert answer.json() == {"detail": "The database cannot be reached at present"}


async def test_a_database_that_is_busy_is_one_line(
    dsn: str, make_app: MakeApp, database: "asyncpg.Connection[Any]"
) -> None:
    """503, as the same HTTP request may succeed a moment later."""
    name = await database.fetchval("SELECT current_database()")
    await database.execute(f"ALTER DATABASE {name} SET lock_timeout = '50ms'")
    app = make_app(dsn, aioabort_timing=Timing(busy_timeout=0.1))
    async with (
        AbortClient(app) as client,
        browsing(mounted(client)) as browser,
        database.transaction(),
    ):
        await database.execute("LOCK TABLE aioabort_request IN ACCESS EXCLUSIVE MODE")
        answer = await browser.post("/some-id/abort", headers=JSON)

    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"
    assert answer.json() == {"detail": "The database is busy at present"}


#: An HTTP request to each endpoint that queries PostgreSQL.
ENDPOINTS = [
    ("GET", "/"),
    ("GET", "/some-id"),
    ("POST", "/some-id/abort"),
    ("GET", "/some-id/events"),
    ("GET", "/events?id=some-id"),
]


@pytest.mark.parametrize("broken", ["no table", "no rights"])
@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
async def test_a_refusal_of_the_database_is_one_line(
    dsn: str,
    make_app: MakeApp,
    stranger: Stranger,
    database: "asyncpg.Connection[Any]",
    *,
    broken: str,
    method: str,
    path: str,
) -> None:
    """PostgreSQL's message is in the log only; a stream has this one event."""
    app = make_app(dsn if broken == "no table" else stranger.dsn(dsn))
    async with AbortClient(app) as client, browsing(mounted(client)) as browser:
        if broken == "no table":
            await database.execute("DROP TABLE aioabort_request")
        answer = await browser.request(method, path, headers=JSON)

    said = "The database refused; the server's log says why"
    if "events" in path:
        [problem] = re.findall("^event: problem.*?^data: (.*?)$", answer.text, DOT)
        assert json.loads(problem) == {"task_id": "some-id", "detail": said}
        assert answer.text.count("event: ") == 1
    else:
        assert (answer.status_code, answer.json()) == (500, {"detail": said})


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
async def test_a_client_that_is_not_open_is_one_line(
    app: Celery, method: str, path: str
) -> None:
    """An application that forgot to open it, or has closed it, is not ready.

    A stream ends without an event, and the browser comes back.
    """
    async with browsing(mounted(AbortClient(app))) as browser:
        answer = await browser.request(method, path, headers=JSON)

    if "events" in path:
        assert (answer.status_code, answer.text.count("event: ")) == (200, 0)
    else:
        assert answer.status_code == 503
        assert answer.json()["detail"].startswith("The application is not ready")


async def test_a_client_may_be_found_by_the_request(app: Celery, task_id: str) -> None:
    """For an application that creates its client when it starts."""

    def find(request: Request) -> AbortClient:
        found: AbortClient = request.app.state.aborts
        return found

    served = Starlette(routes=routes(find, authorize=by_header))
    async with AbortClient(app) as client, browsing(served, "http://site") as browser:
        served.state.aborts = client
        answer = await browser.post(f"/{task_id}/abort", json={})

    assert answer.status_code == 202


async def test_many_at_once(browser: Browser) -> None:
    """Concurrent HTTP requests do not disturb each other."""
    answers = await asyncio.gather(
        *(browser.post(f"/task-{n % 5}/abort", json={}) for n in range(50))
    )

    assert {answer.status_code for answer in answers} == {202}
    told = [json.loads(answer.content)["answer"] for answer in answers]
    assert told.count("requested") == 5
