"""A Flask application, by its test client and by a server with threads."""

import json

from .reader import Reader
from .servers import serving

PAGE = "docs/how-to/flask.md"

#: What the views do by Flask's own test client, which runs them in this thread.
TEST_CLIENT = """
import json
from web import app

browser = app.test_client()
task_id = browser.post("/jobs/100000").json["id"]
answers = [
    browser.post(f"/jobs/{task_id}/cancel"),
    browser.get(f"/jobs/{task_id}"),
    browser.post(f"/jobs/{'x' * 156}/cancel"),
]
print(json.dumps([(answer.status_code, answer.json) for answer in answers]))
"""

#: What another thread finds with an id alone.
ID_ALONE = """
import threading
from aioabort import sync
from proj import index

def abort(target):
    try:
        print(sync.abort(target).answer)
    except Exception as error:
        print(type(error).__name__)

for target in ("some-id", index.AsyncResult("some-id")):
    thread = threading.Thread(target=abort, args=[target])
    thread.start()
    thread.join()
"""


def test_flask(reader: Reader) -> None:
    """The server's threads find the app, and the worker stops what they cancel."""
    reader.settings["result_backend"] = reader.dsn.replace(
        "postgresql", "aioabort+postgresql", 1
    )
    reader.follow(until="curl")
    reader.give("client.py", TEST_CLIENT)
    (cancelled, status, refused) = json.loads(reader.run("python client.py"))

    assert (cancelled[0], cancelled[1]["answer"]) == (202, "requested")
    assert status[1]["request"]["reason"] == "pressed cancel"
    assert refused[0] == 422

    with serving(reader, "flask", "--app=web", "run", "--port={port}") as address:
        reader.replaced["localhost:5000"] = address
        reader.follow(until="set_default")

    reader.give("alone.py", ID_ALONE)
    assert reader.run("python alone.py") == "ImproperlyConfigured\nrequested\n"
    reader.follow()
    assert reader.run("python alone.py") == "requested_before\nrequested_before\n"
