"""A FastAPI application from the start of a task to its end, served by Uvicorn."""

import re
import time

import httpx

from tests.support.waiting import BOUND

from .reader import Reader
from .servers import serving

PAGE = "docs/how-to/fastapi.md"

UVICORN = ("uvicorn", "web:app", "--port={port}", "--timeout-graceful-shutdown=3")

ABORTED = """
import asyncio
from aioabort import AbortClient
from proj import app

async def main():
    async with AbortClient(app) as client:
        for request in await client.requests():
            if request.reason == "the wait for its result was cancelled":
                print(request.outcome)

asyncio.run(main())
"""


def test_fastapi(reader: Reader) -> None:
    """Each request is answered as the page shows it, with a real worker behind."""
    reader.settings["result_backend"] = reader.dsn.replace(
        "postgresql", "aioabort+postgresql", 1
    )
    reader.follow(until="curl")
    with serving(reader, *UVICORN) as address:
        reader.replaced["localhost:8000"] = address
        reader.follow()

        assert first_event(address, "unknown")["state"] == "PENDING"
        browser_that_leaves(address)
        reader.give("aborted.py", ABORTED)
        deadline = time.monotonic() + BOUND
        while reader.run("python aborted.py") != "aborted\n":
            assert time.monotonic() < deadline


def first_event(address: str, task_id: str) -> dict[str, object]:
    """Return the first event of the task, and go away."""
    url = f"http://{address}/jobs/{task_id}/events"
    with httpx.stream("GET", url, timeout=BOUND) as response:
        for line in response.iter_lines():
            if data := re.match("data: (.*)", line):
                return dict(httpx.Response(200, text=data[1]).json())
    raise AssertionError("the stream has ended")


def browser_that_leaves(address: str) -> None:
    """Wait for a task, and go away after a second."""
    try:
        httpx.get(f"http://{address}/index?files=100000", timeout=1)
    except httpx.ReadTimeout:
        return
    raise AssertionError("the task has ended")
