"""Who may ask for what, and whether a browser asks on somebody else's behalf."""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection, Request

from aioabort.web.refusals import Refusal

Action = Literal["read", "abort", "list"]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, if more is to be said than a name.

    *on_behalf*: may name somebody else as ``requested_by``, as a gateway does for the
    users that it has authenticated.
    """

    name: str
    on_behalf: bool = False


#: Gets the request, what is asked for, and of which task (None for the list). Returns
#: who asks; None refuses.
Authorize: TypeAlias = Callable[
    [Request, Action, str | None], Awaitable["Caller | str | None"]
]


async def authorized(
    authorize: Authorize, request: Request, action: Action, task_id: str | None
) -> Caller:
    """Return who asks, or raise a Refusal.

    Raises TypeError if *authorize* returns something else, such as True: nobody knows
    what that was meant to allow.
    """
    answer = cast("object", await authorize(request, action, task_id))
    caller = Caller(answer) if isinstance(answer, str) else answer
    if caller is not None and not isinstance(caller, Caller):
        raise TypeError(
            f"authorize() returns a name, a Caller or None, not {type(answer).__name__}"
        )
    # An empty name is what frameworks call somebody whom they do not know.
    if caller is None or not caller.name:
        raise Refusal(403, "Not allowed")
    return caller


def check_origin(request: HTTPConnection, trusted: Collection[str]) -> None:
    """Raise a Refusal if a page of another site has a browser ask with its cookies.

    Browsers say so themselves, and no page can change what they say; whoever says
    nothing is no browser, and has no cookies that somebody else could use.
    """
    origin = request.headers.get("origin")
    if origin is not None and origin in trusted:
        return
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        is_own = site in {"same-origin", "none"}
    else:
        # An old browser, or one that was given a plain http:// address. Not compared
        # is the scheme, which a proxy may have changed.
        is_own = origin is None or _host(origin) == request.headers.get("host")
    if not is_own:
        raise Refusal(403, "A page of another site may not ask for this")


def _host(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
