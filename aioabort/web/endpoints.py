"""The endpoints: a task, its abort, its events, and the list of requests."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeAlias, cast

from anyio import to_thread
from celery import states
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aioabort.facts import Json, facts, plain
from aioabort.producer.client import AbortClient
from aioabort.records import TaskSnapshot
from aioabort.web.access import Authorize, authorized, check_origin
from aioabort.web.events import LAST_ID, EventStream
from aioabort.web.inputs import checked_id, flag_of, limit_of, read_object
from aioabort.web.refusals import Answer, Refusal, answering, refusals

#: Tasks that one stream of events tells of.
MOST_TASKS: Final = 100

#: A client, or what finds it for applications that open it when they start.
FindClient: TypeAlias = AbortClient | Callable[[Request], AbortClient]

_FIELDS: Final = frozenset({"reason", "grace"})


def routes(
    client: FindClient,
    *,
    authorize: Authorize,
    arguments: bool = False,
    trusted_origins: Collection[str] = (),
) -> list[Route]:
    """Return the endpoints, to be mounted in Starlette, FastAPI or any ASGI application.

    ``GET /`` lists requests to abort, ``GET /{id}`` tells of a task, ``POST
    /{id}/abort`` asks it to stop, and ``GET /{id}/events`` tells of it until it ends,
    as does ``GET /events?id=…&id=…`` of several.

    *authorize* is awaited with the request, ``"read"``, ``"abort"`` or ``"list"``, and
    the task's id. It returns the name of whoever asks, which an abort is recorded with,
    or a Caller; None refuses, and so does whatever it raises.

    A task's name and arguments are told only with *arguments*, and if Celery stores
    them (``result_extended``). *trusted_origins* (``"https://admin.example.com"``) may
    ask for aborts from other sites.
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

    @answering
    async def list_requests(self, request: Request) -> Response:
        """Answer with the latest requests to abort, the newest first."""
        await authorized(self.authorize, request, "list", None)
        limit, pending = limit_of(request), flag_of(request, "pending")
        with refusals():
            found = await self._client(request).requests(limit=limit, pending=pending)
        return Answer({"requests": [facts(known) for known in found]})

    @answering
    async def task(self, request: Request) -> Response:
        """Answer with what is known of a task; 404 if that is nothing."""
        task_id = checked_id(request.path_params["task_id"])
        await authorized(self.authorize, request, "read", task_id)
        client = self._client(request)
        with refusals():
            snapshot = await client.snapshot(task_id)
            known = facts(snapshot)
            if self.shows_arguments:
                known |= await _arguments(client, task_id)
        if _is_known(snapshot):
            return Answer(known)
        detail = "No trace of this task: it is unknown, or waits in a queue"
        return Answer({"detail": detail, **known}, HTTPStatus.NOT_FOUND)

    @answering
    async def abort(self, request: Request) -> Response:
        """Ask a task to stop; answer with the receipt, 409 if it had ended.

        A task of which there is no trace is asked, too, as it may be in a queue.
        """
        check_origin(request, self.trusted_origins)
        task_id = checked_id(request.path_params["task_id"])
        caller = await authorized(self.authorize, request, "abort", task_id)
        fields = _FIELDS | {"requested_by"} if caller.on_behalf else _FIELDS
        given = await read_object(request, fields)
        with refusals():
            receipt = await self._client(request).abort(
                task_id,
                reason=given.get("reason"),
                requested_by=given.get("requested_by", caller.name),
                grace=given.get("grace"),
            )
        status = HTTPStatus.ACCEPTED if receipt.is_requested else HTTPStatus.CONFLICT
        return Answer(facts(receipt), status)

    @answering
    async def events(self, request: Request) -> Response:
        """Tell of a task until it ends."""
        return await self._events(request, [request.path_params["task_id"]])

    @answering
    async def events_of_several(self, request: Request) -> Response:
        """Tell of tasks until the last of them ends.

        For pages with many of them: over HTTP/1.1 a browser opens six connections.
        """
        task_ids = [*dict.fromkeys(request.query_params.getlist("id"))]
        if not 1 <= len(task_ids) <= MOST_TASKS:
            raise Refusal(422, f"id is to be given, from 1 to {MOST_TASKS} times")
        return await self._events(request, task_ids)

    async def _events(self, request: Request, task_ids: list[str]) -> Response:
        for task_id in map(checked_id, task_ids):
            await authorized(self.authorize, request, "read", task_id)
        if request.headers.get("last-event-id") == LAST_ID:
            return Response(status_code=HTTPStatus.NO_CONTENT)
        if request.method == "HEAD":
            return Response(media_type=EventStream.media_type)
        return EventStream(self._client(request), task_ids)

    def _client(self, request: Request) -> AbortClient:
        found = self.find_client
        return found if isinstance(found, AbortClient) else found(request)


def _is_known(snapshot: "TaskSnapshot[Any]") -> bool:
    return snapshot.state != states.PENDING or snapshot.request is not None


async def _arguments(client: AbortClient, task_id: str) -> dict[str, Json]:
    """Return what Celery stores with ``result_extended``."""

    def read() -> Any:
        return cast("Any", client.app.backend).get_task_meta(task_id)

    # Celery's backends block, and the app has one for each thread.
    meta: dict[str, object] = await to_thread.run_sync(read)
    return {name: plain(meta.get(name)) for name in ("name", "args", "kwargs")}
