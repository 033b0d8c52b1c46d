"""What the page asks of its server: to start runs; the rest is ``aioabort.web``."""

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
from aioabort.demo.bench import Bench
from aioabort.demo.project import OURS
from aioabort.demo.runs import Job
from aioabort.demo.tree import first_files
from aioabort.web import Action, Caller, routes
from aioabort.web.access import check_origin
from aioabort.web.inputs import read_object
from aioabort.web.refusals import Answer, Refusal, answering

STATIC: Final = Path(__file__).with_name("static")

#: Of all, as each has an entry in the ledger; and of those that begin at once.
MOST_RUNS = 5_000
MOST_AT_ONCE = 20

#: Directories that are proposed.
MOST_PROPOSED = 30


@dataclass(frozen=True)
class Started:
    """A run that the page has started."""

    number: int
    task_id: str
    path: str
    files: int
    started_at: str


class Site:
    """The page, and the runs that it has started."""

    def __init__(self, client: AbortClient, bench: Bench, job: Job) -> None:
        self._client = client
        self._bench = bench
        self._job = job
        self._runs: list[Started] = []

    def application(self) -> Starlette:
        """Return the ASGI application."""
        tasks = routes(self._client, authorize=_whoever_sits_here)
        return Starlette(
            routes=[
                Route("/", self._page),
                Route("/runs", self._list),
                Route("/runs", self._start, methods=["POST"]),
                Mount("/tasks", routes=tasks),
                Mount("/static", StaticFiles(directory=STATIC)),
            ],
            # Another site may have its own name lead here; then its pages would pass
            # for ours.
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

    async def _list(self, _: Request) -> Response:
        """Answer with all runs, and with what a new one may be."""
        return Answer(
            {
                "runs": [asdict(run) for run in self._runs],
                "path": self._job.path,
                "paths": await to_thread.run_sync(_folders, Path(self._job.path)),
                "user": _account(),
            }
        )

    @answering
    async def _start(self, request: Request) -> Response:
        """Start as many runs as are asked for, and answer with them."""
        check_origin(request, ())
        body = await read_object(request, frozenset({"path", "count"}))
        count = body.get("count", 1)
        if type(count) is not int or not 1 <= count <= MOST_AT_ONCE:
            raise Refusal(422, f"count is a number from 1 to {MOST_AT_ONCE}")
        if len(self._runs) + count > MOST_RUNS:
            raise Refusal(409, f"There have been {MOST_RUNS} runs: start the demo anew")
        path = body.get("path", self._job.path)
        root, files = await to_thread.run_sync(_tree, path, self._job.files)
        started = [await self._send(root, files) for _ in range(count)]
        return Answer({"runs": [asdict(run) for run in started]}, 201)

    async def _send(self, root: Path, files: int) -> Started:
        number, _ = self._bench.new_entry()
        index = cast("AbortableTask[..., Any]", OURS["index"])
        try:
            result = await self._client.send(
                index, number, str(root), files, self._job.rest
            )
        except OperationalError:
            raise Refusal(503, "The broker cannot be reached at present") from None
        now = datetime.now(UTC).isoformat()
        run = Started(number, result.id, str(root), files, now)
        self._runs.append(run)
        return run


async def _whoever_sits_here(_: Request, __: Action, ___: str | None) -> Caller:
    """Let everybody in who can reach this machine's loopback, under any name."""
    return Caller(_account(), on_behalf=True)


def _account() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "you"


def _tree(path: object, most: int) -> tuple[Path, int]:
    """Return the directory, and how many of its files are indexed."""
    if not isinstance(path, str) or not path or "\0" in path:
        raise Refusal(422, "path is the name of a directory")
    if (root := _directory(path)) is None:
        raise Refusal(422, f"{path[:200]} is not a directory")
    if files := len(first_files(root, most)):
        return root, files
    raise Refusal(422, f"{root} has no files that can be read")


def _directory(path: str) -> Path | None:
    # A name may be too long, and a home nobody's.
    with suppress(OSError, RuntimeError):
        root = Path(path).expanduser().absolute()
        return root if root.is_dir() else None
    return None


def _folders(root: Path) -> list[str]:
    """Return the directory and some of those in it."""
    try:
        inner = sorted(str(path) for path in root.iterdir() if path.is_dir())
    except OSError:
        inner = []
    return [str(root), *inner][:MOST_PROPOSED]
