"""The how-to pages about the web: their programs run as they are printed."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CeleryUrl = Callable[[str], str]

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"

PROJECT = """
import sys
from celery import Celery
app = Celery("proj", broker="memory://", backend=sys.argv[1])
"""

DJANGO = """
import asyncio, json

import django
from django.conf import settings
from django.test import AsyncClient
from django.utils.decorators import async_only_middleware

class Alice:
    def get_username(self):
        return "alice"

@async_only_middleware
def logged_in(get_response):
    async def auser():
        return Alice()

    async def middleware(request):
        request.auser = auser
        return await get_response(request)

    return middleware

settings.configure(
    ROOT_URLCONF="urls",
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware", "__main__.logged_in"],
)
django.setup()

async def main():
    from proj import app
    client = AsyncClient()
    asked = await client.post("/tasks/a/", {"reason": "why"})
    told = await client.get("/tasks/a/")
    foreign = await client.post("/tasks/foreign/")
    forged = await AsyncClient(enforce_csrf_checks=True).post("/tasks/b/")
    await asyncio.to_thread(lambda: app.backend.store_result("c", 1, "SUCCESS"))
    late = await client.post("/tasks/c/")
    stream = await client.get("/tasks/c/events")
    events = b"".join([part async for part in stream.streaming_content])
    print(json.dumps({
        "statuses": [r.status_code for r in (asked, told, foreign, forged, late)],
        "request": told.json()["request"],
        "events": events.decode(),
    }))

asyncio.run(main())
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


def run(page: str, driver: str, folder: Path, backend: str) -> Any:
    """Run *driver* beside the programs of *page*, and return what it prints."""
    blocks = re.findall(
        r"```python\n(# (\w+\.py)\b.*?)```", (HOW_TO / page).read_text(), re.DOTALL
    )
    files = {name: text for text, name in blocks}
    files["proj.py"] = PROJECT
    files["jobs.py"] = "async def is_owner(user, task_id): return task_id != 'foreign'"
    files["driver.py"] = driver
    for name, text in files.items():
        (folder / name).write_text(text)
    ran = subprocess.run(
        [sys.executable, "driver.py", backend],
        cwd=folder,
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_django(dsn: str, celery_url: CeleryUrl, tmp_path: Path) -> None:
    """The views abort, tell and stream, for the owner and with Django's own checks."""
    printed = run("django.md", DJANGO, tmp_path, celery_url(dsn))

    assert printed["statuses"] == [202, 200, 404, 403, 409]
    assert printed["request"]["requested_by"] == "alice"
    assert printed["request"]["reason"] == "why"
    assert printed["events"].startswith('data: {"task_id": "c", "state": "SUCCESS"')


def test_fastapi(dsn: str, celery_url: CeleryUrl, tmp_path: Path) -> None:
    """The endpoints are open for whom ``authorize`` knows, while the lifespan lasts."""
    printed = run("web.md", FASTAPI, tmp_path, celery_url(dsn))

    assert printed["statuses"] == [403, 202, 200]
    assert printed["request"]["requested_by"] == "alice"
