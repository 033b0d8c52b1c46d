"""One task, started and aborted through each of the frameworks."""

from .reader import Reader

PAGE = "docs/how-to/frameworks.md"

#: Starts a task by ``post()``, aborts it, and tells what the answers were.
PRESS_CANCEL = """
def press_cancel(post):
    task_id = post("/index/1000")["id"]
    print(post(f"/tasks/{task_id}/abort")["answer"])
    return task_id
"""

#: A project of the frameworks' own test clients, by the framework.
DRIVERS = {
    "fastapi": """
from starlette.testclient import TestClient
from fastapi_app import app
from press import press_cancel

with TestClient(app) as client:
    task_id = press_cancel(lambda path: client.post(path).json())
    print(client.get(f"/tasks/{task_id}").json()["aborted"])
    print(client.post(f"/tasks/{'x' * 156}/abort").status_code)
""",
    "starlette": """
from starlette.testclient import TestClient
from starlette_app import app
from press import press_cancel

with TestClient(app) as client:
    press_cancel(lambda path: client.post(path).json())
""",
    "aiohttp": """
import asyncio
from aiohttp.test_utils import TestClient, TestServer
from aiohttp_app import app
from press import press_cancel

async def main():
    async with TestClient(TestServer(app)) as client:
        loop = asyncio.get_running_loop()

        async def ask(path):
            answer = await client.post(path)
            return await answer.json()

        def post(path):
            return asyncio.run_coroutine_threadsafe(ask(path), loop).result()

        await asyncio.to_thread(press_cancel, post)

asyncio.run(main())
""",
    "django": """
import asyncio
import json
import django
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    ROOT_URLCONF="views",
)
django.setup()

from django.contrib.auth.models import AnonymousUser
from django.test import AsyncRequestFactory
from django.urls import resolve
from press import press_cancel

async def main():
    loop = asyncio.get_running_loop()

    async def ask(path):
        request = AsyncRequestFactory().post(path)
        request.user = AnonymousUser()
        view = resolve(path)
        answer = await view.func(request, *view.args, **view.kwargs)
        return json.loads(answer.content)

    def post(path):
        return asyncio.run_coroutine_threadsafe(ask(path), loop).result()

    await asyncio.to_thread(press_cancel, post)

asyncio.run(main())
""",
}

#: A browser that leaves while its request waits for a task.
GONE = """
import asyncio
import json
from aioabort import AbortClient
from fastapi_app import app
from proj import app as celery_app

async def main():
    async with app.router.lifespan_context(app) as state:
        client = state["client"]
        started, answers = asyncio.Event(), []

        async def receive():
            await started.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            answers.append(message.get("body", b""))

        scope = {
            "type": "http", "method": "GET", "path": "/index/1000", "headers": [],
            "query_string": b"", "state": state, "app": app,
        }
        request = asyncio.create_task(app(scope, receive, send))
        await asyncio.sleep(1)
        started.set()
        await request
        print(json.loads(b"".join(answers))["aborted"])

asyncio.run(main())
"""


def test_frameworks(reader: Reader) -> None:
    """Each framework's application sends a task, aborts it and tells the answer."""
    reader.follow()
    reader.start_worker()
    reader.give("press.py", PRESS_CANCEL)
    said = {}
    for name, driver in {**DRIVERS, "gone": GONE}.items():
        reader.give(f"drive_{name}.py", driver)
        said[name] = reader.run(f"python -W ignore drive_{name}.py").splitlines()

    assert said == {
        "fastapi": ["requested", "pressed cancel", "422"],
        "starlette": ["requested"],
        "aiohttp": ["requested"],
        "django": ["requested"],
        "gone": ["the browser went away"],
    }
