"""Our endpoints, mounted in FastAPI."""

import json

from .reader import Reader

PAGE = "docs/how-to/web.md"

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
        asked = await browser.post("/a/abort", json={"reason": "why"})
        told = await browser.get("/a")
    statuses = [answer.status_code for answer in (stranger, asked, told)]
    print(json.dumps({"statuses": statuses, "request": told.json()["request"]}))

asyncio.run(main())
"""


def test_fastapi(reader: Reader) -> None:
    """The endpoints are open for whom ``authorize`` knows, while the lifespan lasts."""
    reader.give("proj.py", PROJECT)
    reader.follow()
    reader.give("driver.py", FASTAPI)
    printed = json.loads(reader.run("python -W ignore driver.py"))

    assert printed["statuses"] == [403, 202, 200]
    assert printed["request"]["requested_by"] == "alice"
