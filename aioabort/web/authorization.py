"""Authorization: who the caller is, and whether the browser is on one of our pages."""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection, Request

from aioabort.web.responses import HTTPError

Action = Literal["read", "abort", "list"]


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated caller, for ``authorize`` to return instead of a name.

    *on_behalf*: the body of an abort may set ``requested_by`` to another name, for a
    gateway that has authenticated its users itself.
    """

    name: str
    on_behalf: bool = False


#: Receives the HTTP request, the action, and the task's id (None for the list).
#: Returns the caller; None refuses the HTTP request with status 403.
Authorize: TypeAlias = Callable[
    [Request, Action, str | None], Awaitable["Caller | str | None"]
]


async def authorize_caller(
    authorize: Authorize, http_request: Request, action: Action, task_id: str | None
) -> Caller:
    """Return the caller that *authorize* allows.

    Raises HTTPError 403 if it allows none, and TypeError if it returns another type:
    True, for example, does not say who the caller is.
    """
    answer = cast("object", await authorize(http_request, action, task_id))
    caller = Caller(answer) if isinstance(answer, str) else answer
    if caller is not None and not isinstance(caller, Caller):
        raise TypeError(
            f"authorize() returns a name, a Caller or None, not {type(answer).__name__}"
        )
    # Frameworks give an anonymous user an empty name.
    if caller is None or not caller.name:
        raise HTTPError(403, "Not allowed")
    return caller


def check_origin(http_request: HTTPConnection, trusted: Collection[str]) -> None:
    """Raise HTTPError 403 if a page of another site sent the request (CSRF).

    The browser sets these headers, and no page can change them. A client that sends
    neither is not a browser, so it has no cookies that another site could use.
    """
    origin = http_request.headers.get("origin")
    if origin is not None and origin in trusted:
        return
    site = http_request.headers.get("sec-fetch-site")
    if site is not None:
        is_own = site in {"same-origin", "none"}
    else:
        # An old browser, or a plain http:// address. The scheme is not compared,
        # because a proxy that ends TLS changes it.
        is_own = origin is None or _host(origin) == http_request.headers.get("host")
    if not is_own:
        raise HTTPError(403, "A page of another site may not ask for this")


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
