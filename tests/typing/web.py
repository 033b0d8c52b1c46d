"""How type checkers see the web endpoints; never run."""

from typing import assert_type

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount, Route

from aioabort import AbortClient, AbortReceipt, TaskSnapshot
from aioabort.serialization import Json, serialize
from aioabort.web import Action, Authorize, Caller, routes


async def by_name(request: Request, action: Action, _: str | None) -> str | None:
    return None if action == "list" else request.headers.get("x-user")


async def gateway(_: Request, __: Action, ___: str | None) -> Caller:
    return Caller("gateway", on_behalf=True)


def find(request: Request) -> AbortClient:
    client: AbortClient = request.app.state.client
    return client


def mount(client: AbortClient) -> None:
    authorize: Authorize = by_name
    endpoints = routes(client, authorize=authorize, trusted_origins=["https://a.b"])
    assert_type(endpoints, list[Route])
    Starlette(routes=[Mount("/tasks", routes=endpoints)])
    Starlette(routes=routes(find, authorize=gateway, arguments=True))


def tell(snapshot: TaskSnapshot[bytes], receipt: AbortReceipt) -> None:
    assert_type(serialize(snapshot), dict[str, Json])
    assert_type(serialize(receipt), dict[str, Json])
