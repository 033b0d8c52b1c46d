"""The HTTP endpoints: a task, its abort, its events, and the list of abort requests."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeAlias, cast

from celery import states
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aioabort.client.client import AbortClient
from aioabort.concurrency.blocking import run_blocking
from aioabort.models import TaskSnapshot
from aioabort.serialization import Json, serialize, to_json
from aioabort.web.authorization import Authorize, authorize_caller, check_origin
from aioabort.web.events import LAST_ID, EventStream
from aioabort.web.request_parsing import (
    parse_flag,
    parse_limit,
    parse_task_id,
    read_json_object,
)
from aioabort.web.responses import (
    HTTPError,
    UncachedJSONResponse,
    http_errors,
    respond_to_errors,
)

#: Maximum number of tasks in one event stream.
MAX_TASKS: Final = 100

#: A client, or a function that returns the client of an HTTP request.
FindClient: TypeAlias = AbortClient | Callable[[Request], AbortClient]

_ABORT_FIELDS: Final = frozenset({"reason", "grace"})
_GATEWAY_FIELDS: Final = _ABORT_FIELDS | {"requested_by"}


def routes(
    client: FindClient,
    *,
    authorize: Authorize,
    arguments: bool = False,
    trusted_origins: Collection[str] = (),
) -> list[Route]:
    """Return the endpoints, to mount in Starlette, FastAPI or any ASGI application.

    ``GET /`` lists abort requests, ``GET /{id}`` returns a task, ``POST /{id}/abort``
    aborts it, ``GET /{id}/events`` streams its changes until it ends, and ``GET
    /events?id=…&id=…`` streams those of several tasks.

    *authorize* is awaited with the HTTP request, the action (``"read"``, ``"abort"``
    or ``"list"``) and the task's id. It returns the caller's name, which is stored with
    an abort request, or a Caller. If it returns None, the response has status 403; an
    exception goes to the application's handlers.

    *arguments*: include a task's name and arguments, if Celery stores them
    (``result_extended``). *trusted_origins*: other sites that may abort tasks, such as
    ``"https://admin.example.com"``.
    """
    endpoints = _Endpoints(client, authorize, arguments, frozenset(trusted_origins))
    return [
        Route("/", endpoints.list_requests),
        Route("/events", endpoints.events_of_several),
        Route("/{task_id}", endpoints.task),
        Route("/{task_id}/events", endpoints.events),
        Route("/{task_id}/abort", endpoints.abort, methods=["POST"]),
    ]


@dataclass(frozen=True)
class _Endpoints:
    find_client: FindClient
    authorize: Authorize
    shows_arguments: bool
    trusted_origins: frozenset[str]

    @respond_to_errors
    async def list_requests(self, http_request: Request) -> Response:
        """Return the latest abort requests, newest first."""
        await authorize_caller(self.authorize, http_request, "list", None)
        limit = parse_limit(http_request)
        pending = parse_flag(http_request, "pending")
        client = self._client(http_request)
        with http_errors():
            requests = await client.requests(limit=limit, pending=pending)
        return UncachedJSONResponse({"requests": to_json(requests)})

    @respond_to_errors
    async def task(self, http_request: Request) -> Response:
        """Return a task; 404 if there is no trace of it."""
        task_id = parse_task_id(http_request.path_params["task_id"])
        await authorize_caller(self.authorize, http_request, "read", task_id)
        client = self._client(http_request)
        with http_errors():
            snapshot = await client.snapshot(task_id)
            data = serialize(snapshot)
            if self.shows_arguments:
                data |= await _read_arguments(client, task_id)
        if _is_known(snapshot):
            return UncachedJSONResponse(data)
        detail = "No trace of this task: it is unknown or still queued"
        return UncachedJSONResponse({"detail": detail, **data}, HTTPStatus.NOT_FOUND)

    @respond_to_errors
    async def abort(self, http_request: Request) -> Response:
        """Abort a task and return the receipt; 409 if the task had ended.

        An unknown task is aborted, too, because it may be queued.
        """
        check_origin(http_request, self.trusted_origins)
        task_id = parse_task_id(http_request.path_params["task_id"])
        caller = await authorize_caller(self.authorize, http_request, "abort", task_id)
        fields = _GATEWAY_FIELDS if caller.on_behalf else _ABORT_FIELDS
        body = await read_json_object(http_request, fields)
        with http_errors():
            receipt = await self._client(http_request).abort(
                task_id,
                reason=body.get("reason"),
                requested_by=body.get("requested_by", caller.name),
                grace=body.get("grace"),
            )
        status = HTTPStatus.ACCEPTED if receipt.is_requested else HTTPStatus.CONFLICT
        return UncachedJSONResponse(serialize(receipt), status)

    @respond_to_errors
    async def events(self, http_request: Request) -> Response:
        """Stream the changes of a task until it ends."""
        return await self._stream(http_request, [http_request.path_params["task_id"]])

    @respond_to_errors
    async def events_of_several(self, http_request: Request) -> Response:
        """Stream the changes of several tasks until all of them have ended.

        For pages with many tasks: over HTTP/1.1 a browser opens only six connections.
        """
        task_ids = [*dict.fromkeys(http_request.query_params.getlist("id"))]
        if not 1 <= len(task_ids) <= MAX_TASKS:
            raise HTTPError(422, f"id must be given from 1 to {MAX_TASKS} times")
        return await self._stream(http_request, task_ids)

    async def _stream(self, http_request: Request, task_ids: list[str]) -> Response:
        for task_id in map(parse_task_id, task_ids):
            await authorize_caller(self.authorize, http_request, "read", task_id)
        if http_request.headers.get("last-event-id") == LAST_ID:
            return Response(status_code=HTTPStatus.NO_CONTENT)
        if http_request.method == "HEAD":
            return Response(media_type=EventStream.media_type)
        return EventStream(self._client(http_request), task_ids)

    def _client(self, http_request: Request) -> AbortClient:
        found = self.find_client
        return found if isinstance(found, AbortClient) else found(http_request)


def _is_known(snapshot: "TaskSnapshot[Any]") -> bool:
    return snapshot.state != states.PENDING or snapshot.request is not None


async def _read_arguments(client: AbortClient, task_id: str) -> dict[str, Json]:
    """Return the name and arguments that Celery stores with ``result_extended``."""

    def read() -> Any:
        return cast("Any", client.app.backend).get_task_meta(task_id)

    # Celery's backend blocks; app.backend is a separate one in each thread.
    meta: dict[str, object] = await run_blocking(read, "aioabort-arguments")
    return {name: to_json(meta.get(name)) for name in ("name", "args", "kwargs")}
