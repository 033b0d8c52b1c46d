"""One task, started and aborted through each web framework."""

from .reader import Reader

PAGE = "docs/how-to/web-frameworks.md"

#: Starts a task by ``post()``, aborts it, and prints the answer.
PRESS_CANCEL = """
def press_cancel(post):
    task_id = post("/index/1000")["id"]
    print(post(f"/tasks/{task_id}/abort")["answer"])
    return task_id
"""

#: Programs that drive the applications of the page, by what they show.
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
    "degraded": """
import socket
from contextlib import ExitStack
from starlette.testclient import TestClient
from aioabort.testing.postgres import throwaway_postgres
from degraded_app import app
from proj import app as celery_app

with socket.create_server(("127.0.0.1", 0)) as listener:
    port = listener.getsockname()[1]
url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
celery_app.conf.result_backend = f"db+{url}"

# The server outlives the application, which logs the end of its connections.
with ExitStack() as stack, TestClient(app) as client:
    print(client.post("/tasks/some-id/abort").status_code)
    place = {"listen_addresses": "127.0.0.1", "port": str(port)}
    stack.enter_context(throwaway_postgres(settings=place))
    print(client.post("/tasks/some-id/abort").json()["answer"])
""",
}

#: A browser that disconnects while its HTTP request waits for a task.
DISCONNECTED = """
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


def test_web_frameworks(reader: Reader) -> None:
    """Each application sends a task and aborts it.

    The degraded one starts while PostgreSQL is away, and aborts when it is there.
    """
    reader.follow()
    reader.start_worker()
    reader.give("press.py", PRESS_CANCEL)
    said = {}
    for name, driver in {**DRIVERS, "disconnected": DISCONNECTED}.items():
        reader.give(f"drive_{name}.py", driver)
        said[name] = reader.run(f"python -W ignore drive_{name}.py").splitlines()

    assert said == {
        "fastapi": ["requested", "pressed cancel", "422"],
        "starlette": ["requested"],
        "aiohttp": ["requested"],
        "degraded": ["503", "requested"],
        "disconnected": ["the browser disconnected"],
    }
