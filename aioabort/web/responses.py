"""JSON responses, and the HTTP errors that replace the exceptions of a client."""

import functools
import json
import logging
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from aioabort.exceptions import (
    ClientClosed,
    InvalidRequest,
    ResultsElsewhere,
    StoreBusy,
    StoreError,
    StoreUnavailable,
)
from aioabort.serialization import Json

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds in ``Retry-After`` while PostgreSQL is away or busy.
RETRY_AFTER = 2

T = TypeVar("T")

Endpoint = Callable[[T, Request], Awaitable[Response]]


class HTTPError(Exception):
    """Ends an endpoint with the response *status* and ``{"detail": detail}``."""

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


class UncachedJSONResponse(Response):
    """A JSON response that browsers and proxies do not cache."""

    def __init__(
        self,
        content: Json,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            dump_compact(content),
            status,
            {"cache-control": "no-store", **(headers or {})},
            media_type="application/json",
        )


def dump_compact(content: Json) -> str:
    """Return *content* as JSON without spaces.

    It is ASCII, because UTF-8 cannot encode half of a surrogate pair.
    """
    return json.dumps(content, separators=(",", ":"), allow_nan=False)


def respond_to_errors(endpoint: "Endpoint[T]") -> "Endpoint[T]":
    """Return the response for an HTTPError that *endpoint* raises.

    The application's exception handlers do not see it: each framework's would format
    it differently.
    """

    @functools.wraps(endpoint)
    async def respond(self: T, http_request: Request) -> Response:
        try:
            return await endpoint(self, http_request)
        except HTTPError as error:
            detail = {"detail": error.detail}
            return UncachedJSONResponse(detail, error.status, error.headers)

    return respond


@contextmanager
def http_errors() -> Generator[None]:
    """Replace an exception of a client by an HTTPError, and log its message.

    The response does not quote PostgreSQL or asyncpg: they may name hosts and roles.
    """
    try:
        yield
    except Exception as error:
        raise to_http_error(error) from error


def to_http_error(error: Exception) -> HTTPError:
    """Return the HTTPError for an exception of a client; log what needs repair."""
    match error:
        case InvalidRequest():
            return HTTPError(422, str(error))
        case ResultsElsewhere():
            return HTTPError(501, "The results of this application cannot be watched")
        case ClientClosed():
            logger.error("aioabort.web: %s", error)
            return HTTPError(503, "The application is not ready, or is shutting down")
        case StoreUnavailable():
            logger.warning("aioabort.web: %s", error)
            is_busy = isinstance(error, StoreBusy)
            return HTTPError(
                503,
                f"The database {'is busy' if is_busy else 'cannot be reached'} at present",
                {"retry-after": str(RETRY_AFTER)},
            )
        case StoreError():
            logger.error("aioabort.web: %s", error)
            return HTTPError(500, "The database refused; the server's log says why")
        case _:
            # A result in an unexpected encoding: its decoder may raise anything.
            logger.error("aioabort.web: a result cannot be decoded", exc_info=error)
            return HTTPError(500, f"The result cannot be read: {type(error).__name__}")
