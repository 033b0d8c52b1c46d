"""The endpoints, mounted in FastAPI."""

import json

from .reader import Reader

PAGE = "docs/how-to/http-endpoints.md"

PROJECT = """
from celery import Celery
app = Celery("proj")
"""

FASTAPI = """
import asyncio, json

import httpx
from app import app, lifespan

async def main():
    transport = httpx.ASGITransport(app)
    async with lifespan(app), httpx.AsyncClient(
        transport=transport, base_url="http://x/tasks"
    ) as browser:
        stranger = await browser.get("/a")
        browser.headers["x-user"] = "alice"
        aborted = await browser.post("/a/abort", json={"reason": "why"})
        read = await browser.get("/a")
    statuses = [answer.status_code for answer in (stranger, aborted, read)]
    print(json.dumps({"statuses": statuses, "request": read.json()["request"]}))

asyncio.run(main())
"""


def test_fastapi(reader: Reader) -> None:
    """The endpoints serve a user that ``authorize`` names, and refuse others."""
    reader.give("proj.py", PROJECT)
    reader.follow()
    reader.give("driver.py", FASTAPI)
    printed = json.loads(reader.run("python -W ignore driver.py"))

    assert printed["statuses"] == [403, 202, 200]
    assert printed["request"]["requested_by"] == "alice"
