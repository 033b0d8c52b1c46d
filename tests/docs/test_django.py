"""Views of Django's that abort tasks."""

import json

from .reader import Reader

PAGE = "docs/how-to/django.md"

PROJECT = """
from celery import Celery
app = Celery("proj")
"""

#: The user's own knowledge of whose task it is.
JOBS = "async def is_owner(user, task_id): return task_id != 'foreign'"

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


def test_django(reader: Reader) -> None:
    """The views abort, tell and stream, for the owner and with Django's own checks."""
    reader.give("proj.py", PROJECT)
    reader.give("jobs.py", JOBS)
    reader.follow()
    reader.give("driver.py", DJANGO)
    printed = json.loads(reader.run("python -W ignore driver.py"))

    assert printed["statuses"] == [202, 200, 404, 403, 409]
    assert printed["request"]["requested_by"] == "alice"
    assert printed["request"]["reason"] == "why"
    assert printed["events"].startswith('data: {"task_id": "c", "state": "SUCCESS"')
