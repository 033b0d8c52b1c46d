"""The ASGI application of the page: it starts runs; ``aioabort.web`` does the rest."""

import getpass
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

from anyio import to_thread
from kombu.exceptions import OperationalError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from aioabort import AbortableTask, AbortClient
from aioabort.demo.celery_app import AIOABORT_TASKS
from aioabort.demo.runs import IndexJob
from aioabort.demo.services import Services
from aioabort.demo.tasks import first_files
from aioabort.web import Action, Caller, routes
from aioabort.web.authorization import check_origin
from aioabort.web.request_parsing import read_json_object
from aioabort.web.responses import (
    HTTPError,
    UncachedJSONResponse,
    respond_to_errors,
)

STATIC: Final = Path(__file__).with_name("static")

#: Maximum number of runs in all (each has a ledger entry), and of one HTTP request.
MAX_RUNS = 5_000
MAX_STARTS = 20

#: Maximum number of suggested directories.
MAX_SUGGESTIONS = 30


@dataclass(frozen=True)
class StartedRun:
    """A run that the page has started."""

    number: int
    task_id: str
    path: str
    files: int
    started_at: str


class DemoPage:
    """The page and the runs that it has started."""

    def __init__(self, client: AbortClient, services: Services, job: IndexJob) -> None:
        self._client = client
        self._services = services
        self._job = job
        self._runs: list[StartedRun] = []

    def application(self) -> Starlette:
        """Return the ASGI application."""
        tasks = routes(self._client, authorize=_allow_everyone)
        return Starlette(
            routes=[
                Route("/", self._page),
                Route("/runs", self._list_runs),
                Route("/runs", self._start_runs, methods=["POST"]),
                Mount("/tasks", routes=tasks),
                Mount("/static", StaticFiles(directory=STATIC)),
            ],
            # DNS rebinding: another site may point its own host name to 127.0.0.1, so
            # that its pages have our origin.
            middleware=[
                Middleware(
                    TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]
                )
            ],
        )

    async def _page(self, _: Request) -> Response:
        policy = "default-src 'self'; frame-ancestors 'none'; form-action 'self'"
        return FileResponse(
            STATIC / "index.html",
            headers={"content-security-policy": policy, "cache-control": "no-store"},
        )

    async def _list_runs(self, _: Request) -> Response:
        """Return all runs, and the defaults of the form."""
        return UncachedJSONResponse(
            {
                "runs": [asdict(run) for run in self._runs],
                "path": self._job.path,
                "paths": await to_thread.run_sync(_folders, Path(self._job.path)),
                "user": _account(),
            }
        )

    @respond_to_errors
    async def _start_runs(self, http_request: Request) -> Response:
        """Start runs, and return them."""
        check_origin(http_request, ())
        body = await read_json_object(http_request, frozenset({"path", "count"}))
        count = body.get("count", 1)
        if type(count) is not int or not 1 <= count <= MAX_STARTS:
            raise HTTPError(422, f"count must be a number from 1 to {MAX_STARTS}")
        if len(self._runs) + count > MAX_RUNS:
            raise HTTPError(409, f"The demo has started {MAX_RUNS} runs: restart it")
        path = body.get("path", self._job.path)
        root, files = await to_thread.run_sync(_check_path, path, self._job.files)
        started = [await self._send(root, files) for _ in range(count)]
        return UncachedJSONResponse({"runs": [asdict(run) for run in started]}, 201)

    async def _send(self, root: Path, files: int) -> StartedRun:
        number, _ = self._services.new_entry()
        index = cast("AbortableTask[..., Any]", AIOABORT_TASKS["index"])
        try:
            result = await self._client.send(
                index, number, str(root), files, self._job.rest
            )
        except OperationalError:
            raise HTTPError(503, "The broker cannot be reached at present") from None
        now = datetime.now(UTC).isoformat()
        run = StartedRun(number, result.id, str(root), files, now)
        self._runs.append(run)
        return run


async def _allow_everyone(_: Request, __: Action, ___: str | None) -> Caller:
    """Allow every client on this machine's loopback, under any name."""
    return Caller(_account(), on_behalf=True)


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "you"


def _check_path(path: object, most: int) -> tuple[Path, int]:
    """Return the directory, and how many of its files a run indexes."""
    if not isinstance(path, str) or not path or "\0" in path:
        raise HTTPError(422, "path must be the name of a directory")
    if (root := _directory(path)) is None:
        raise HTTPError(422, f"{path[:200]} is not a directory")
    if files := len(first_files(root, most)):
        return root, files
    raise HTTPError(422, f"{root} has no files that can be read")


def _directory(path: str) -> Path | None:
    # OSError: the name is too long. RuntimeError: ~user does not exist.
    with suppress(OSError, RuntimeError):
        root = Path(path).expanduser().absolute()
        return root if root.is_dir() else None
    return None


def _folders(root: Path) -> list[str]:
    """Return *root* and some of its subdirectories."""
    try:
        inner = sorted(str(path) for path in root.iterdir() if path.is_dir())
    except OSError:
        inner = []
    return [str(root), *inner][:MAX_SUGGESTIONS]
