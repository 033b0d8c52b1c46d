"""What is refused, and what cannot be done: a status, and one line that says why."""

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
    StoreError,
    StoreUnavailable,
)
from aioabort.facts import Json

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds after which whoever met a database that is away may try again.
RETRY_AFTER = 2

T = TypeVar("T")

Endpoint = Callable[[T, Request], Awaitable[Response]]


class Refusal(Exception):
    """The answer is *status*, and *detail* in a line."""

    def __init__(
        self, status: int, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers


class Answer(Response):
    """An answer in JSON, which no cache keeps."""

    def __init__(
        self,
        content: Json,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            # In ASCII: half of a surrogate pair cannot be encoded otherwise.
            json.dumps(content, separators=(",", ":"), allow_nan=False),
            status,
            {"cache-control": "no-store", **(headers or {})},
            media_type="application/json",
        )


def answering(endpoint: "Endpoint[T]") -> "Endpoint[T]":
    """Make a refusal that *endpoint* raises its answer.

    Not left to the application's handlers, as each framework's answer differently.
    """

    @functools.wraps(endpoint)
    async def answer(self: T, request: Request) -> Response:
        try:
            return await endpoint(self, request)
        except Refusal as refusal:
            detail = {"detail": refusal.detail}
            return Answer(detail, refusal.status, refusal.headers)

    return answer


@contextmanager
def refusals() -> Generator[None]:
    """Raise a Refusal for what a client raises inside, and log what has to be repaired.

    What PostgreSQL or its driver say is for the log: it may name hosts and roles.
    """
    try:
        yield
    except Exception as error:
        raise refusal_of(error) from error


def refusal_of(error: Exception) -> Refusal:
    """Return what is told of *error*, which a client raised; logs the rest."""
    match error:
        case InvalidRequest():
            return Refusal(422, str(error))
        case ResultsElsewhere():
            return Refusal(501, "The results of this application cannot be watched")
        case ClientClosed():
            logger.error("aioabort.web: %s", error)
            return Refusal(503, "The application is not ready, or about to end")
        case StoreUnavailable():
            logger.warning("aioabort.web: %s", error)
            return Refusal(
                503,
                "The database cannot be reached at present",
                {"retry-after": str(RETRY_AFTER)},
            )
        case StoreError():
            logger.error("aioabort.web: %s", error)
            return Refusal(500, "The database refused; the server's log says why")
        case _:
            # Whatever a codec raises for a payload that it does not like.
            logger.error("aioabort.web: a result cannot be read", exc_info=error)
            return Refusal(500, f"The result cannot be read: {type(error).__name__}")
