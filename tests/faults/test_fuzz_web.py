"""Whatever is sent to the web endpoints: an answer, in time, that blames who sent it."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, unquote_to_bytes
from uuid import UUID

import anyio
import pytest
from celery import Celery
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.routing import Router

from aioabort import AbortClient
from aioabort.web import Caller, routes

from .cases import PIECES, STALL, cases, check_cases

#: A method, a path, a query, headers by name, a body: text, sent as its bytes in UTF-8.
Asked = tuple[str, str, str, tuple[tuple[str, str], ...], str]

#: What may be answered to such requests, which are wrong or harmless; 307 is Starlette's.
STATUSES = {200, 202, 204, 307, 400, 403, 404, 405, 409, 413, 415, 422}

#: Of all fuzz tests' cases.
SHARE = 0.08

VISIBLE = "".join(map(chr, range(0x21, 0x7F)))

JSON = ("content-type", "application/json")
USER = ("x-user", "alice")
ENDED, RUNNING, UNKNOWN = (str(UUID(int=number)) for number in range(3))

BODIES = (
    '{"reason": "user pressed cancel", "grace": 30}',
    '{"reason": "é\\ud83d\\ude00", "requested_by": "bob", "grace": 1e3}',
    '{"grace": 1' + "0" * 400 + "}",
    '{"grace": NaN, "reason": {}, "requested_by": [1.5e308, -0]}',
    '{"reason": ' + "[" * 9_000,
    '{"reason": "' + "x" * 4_090 + '"}',
    "",
)
CORPUS: tuple[Asked, ...] = (
    ("GET", "/", "limit=10&pending=true", (USER,), ""),
    *(("GET", f"/{task_id}", "", (USER,), "") for task_id in (ENDED, RUNNING, UNKNOWN)),
    *(("POST", f"/{RUNNING}/abort", "", (USER, JSON), body) for body in BODIES),
    ("POST", f"/{ENDED}/abort", "", (("x-user", "gateway"), JSON), BODIES[1]),
    (
        "POST",
        f"/{UNKNOWN}/abort",
        "",
        (USER, JSON, ("origin", "https://[::1]:80"), ("host", "site")),
        BODIES[0],
    ),
    ("GET", f"/{ENDED}/events", "", (USER, ("last-event-id", "end")), ""),
    ("GET", f"/{RUNNING}/events", "", (USER,), ""),
    ("GET", "/events", f"id={ENDED}&id={RUNNING}&id=%F0%9F%98%80", (USER,), ""),
)

texts = st.one_of(
    st.text(st.characters(codec=None), max_size=200),
    st.sampled_from([*PIECES, ENDED, RUNNING, "%ED%A0%80", "..", "abort", "events"]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=10,
)
requests: st.SearchStrategy[Asked] = st.tuples(
    st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT", "GÉT"]),
    st.lists(texts, max_size=3).map(lambda parts: "/" + "/".join(parts)),
    st.lists(st.tuples(st.sampled_from(["id", "limit", "pending"]), texts)).map(
        lambda pairs: "&".join(map("=".join, pairs))
    ),
    st.lists(
        st.tuples(
            st.sampled_from(
                ["content-type", "host", "last-event-id", "origin", "sec-fetch-site"]
            ),
            texts,
        )
    ).map(lambda headers: (USER, JSON, *headers)),
    st.one_of(
        texts,
        st.dictionaries(
            st.sampled_from(["reason", "requested_by", "grace", "x"]), values
        ).map(json.dumps),
    ),
)


class Site:
    """The endpoints, called as servers call them."""

    def __init__(self, app: Celery, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._client = AbortClient(app)
        self._router = Router(routes(self._client, authorize=by_header))
        self._runner.run(self._client.open())

    def close(self) -> None:
        """Close the client."""
        self._runner.run(self._client.aclose())

    def answers(self, asked: Asked) -> None:
        """Ask for it, and look at the answer."""
        status, headers, body = self._runner.run(self._ask(*asked))

        assert status in STATUSES
        # Starlette's own refusals are plain text.
        if headers.get(b"content-type") == b"application/json":
            is_receipt = status in {202, 409}
            assert (
                status == 200 or json.loads(body)["task_id" if is_receipt else "detail"]
            )

    async def _ask(
        self,
        method: str,
        path: str,
        query: str,
        headers: tuple[tuple[str, str], ...],
        body: str,
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        scope = {
            "type": "http",
            "method": method,
            # Some servers replace what is no UTF-8, and others do not.
            "path": unquote_to_bytes(_target(path)).decode(errors="surrogateescape"),
            "raw_path": _target(path),
            "root_path": "",
            "query_string": _target(query),
            "headers": [(_bytes(name), _bytes(value)) for name, value in headers],
        }
        sent: list[Any] = []
        is_told = anyio.Event()
        incoming = [{"type": "http.request", "body": _bytes(body), "more_body": False}]

        async def receive() -> Any:
            if incoming:
                return incoming.pop()
            # Of an endless stream, the reader has enough when there was an event.
            await is_told.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if b"data: " in message.get("body", b""):
                is_told.set()

        with anyio.fail_after(STALL):
            await self._router(scope, receive, send)
        start, *rest = sent
        return (
            start["status"],
            dict(start["headers"]),
            b"".join(message["body"] for message in rest),
        )


@pytest.fixture
def site(dsn: str, make_app: Callable[..., Celery]) -> Iterator[Site]:
    """A site with a task that has ended, and one that runs."""
    app = make_app(dsn)
    app.backend.store_result(ENDED, {"value": 1}, "SUCCESS")
    app.backend.store_result(RUNNING, None, "STARTED")
    with asyncio.Runner() as runner:
        site = Site(app, runner)
        yield site
        site.close()


def test_web_input(site: Site, pytestconfig: pytest.Config) -> None:
    """Each request is answered: done, or refused with the reason, but never a crash."""
    check_cases(site.answers, round(cases(pytestconfig) * SHARE), requests, CORPUS)


async def by_header(request: Request, _action: str, _task_id: str | None) -> Caller:
    """Let everybody in who has a name."""
    name = request.headers.get("x-user", "")
    return Caller(name, on_behalf=name == "gateway")


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _target(text: str) -> bytes:
    """Return what servers let through in a path or a query: visible ASCII."""
    return quote(_bytes(text), safe=VISIBLE).encode()
