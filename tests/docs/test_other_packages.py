"""The recipes of the page, in one project with one worker, and with real packages."""

import json
from importlib.util import find_spec
from uuid import uuid4

import pytest

from tests.support.brokers import redis_url

from .reader import Reader

PAGE = "docs/how-to/other-packages.md"

PACKAGES = [
    "celery_once",
    "celery_singleton",
    "opentelemetry.instrumentation.celery",
    "sentry_sdk",
]

CLIENT = """
import asyncio, json, sys
from celery_once import AlreadyQueued
from aioabort import AbortClient, TaskAborted
import proj

async def begin(client, task, *args, **options):
    result = await client.apply_async(task, args, **options)
    if "countdown" not in options:
        async for snapshot in result.watch():
            if snapshot.state in {"STARTED", "COUNTING"}:
                break
    return result

async def abort(result):
    receipt = await result.abort(reason="enough")
    try:
        return repr(await result.wait(30))
    except TaskAborted:
        return await receipt.settled(30)

async def main():
    tag, told = sys.argv[1], {}
    async with AbortClient(proj.app) as client:
        for task in proj.import_file, proj.send_report:
            for options in {"countdown": 1}, {}:
                first = await begin(client, task, tag, **options)
                outcome = await abort(first)
                again = await client.apply_async(task, (tag,))
                told[f"{task.name} {options}"] = [outcome, again.id != first.id]
                await abort(again)
        if "batches" in sys.argv:
            from batches import double
            stopped = await client.apply_async(double, (1,))
            receipt = await stopped.abort()
            other = await client.apply_async(double, (2,))
            told["double"] = [await receipt.settled(30), await other.wait(30)]
        tenant = await begin(client, proj.count_rows, headers={"tenant": "acme"})
        told["tenant"] = (await tenant.snapshot()).result
        told["count"] = await abort(tenant)
        failed = await client.apply_async(proj.fail)
        try:
            await failed.wait(30)
        except LookupError:
            pass
    print(json.dumps(told))

asyncio.run(main())
"""


def is_installed(package: str) -> bool:
    """Whether *package* can be imported, without doing so."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.skipif(
    not all(map(is_installed, PACKAGES)), reason="a package of the page is missing"
)
def test_recipes(request: pytest.FixtureRequest) -> None:
    """No lock outlives an abort, no abort is an issue, and a batch is aborted by task."""
    url = redis_url()
    follow(request.getfixturevalue("reader"), url)


def follow(reader: Reader, url: str) -> None:
    reader.replaced["redis://localhost"] = url
    reader.settings["task_track_started"] = True
    reader.follow()
    has_batches = is_installed("celery_batches")
    if not has_batches:
        # It cannot be installed beside the newest Celery.
        del reader.files["batches.py"]
    module = "batches" if has_batches else "proj"
    reader.start_worker(f"celery -A {module} worker --concurrency=2")
    reader.give("client.py", CLIENT)
    # The locks are in a Redis that other tests use.
    client = f"python -W ignore client.py {uuid4()} {module}"
    told = json.loads(reader.run(client))
    log = reader.stop_worker()

    for task in "import_file", "send_report":
        assert told[f"proj.{task} {{'countdown': 1}}"] == ["aborted", True]
        assert told[f"proj.{task} {{}}"] == ["aborted", True]
    assert told.get("double", ["aborted", 4]) == ["aborted", 4]
    assert ("double" in told) == has_batches
    assert told["tenant"] == {"tenant": "acme"}
    assert told["count"] == "aborted"
    assert log.count("issue: ") == 1
    assert "issue: LookupError" in log
    assert '"celery.state": "IGNORED"' in log
    assert '"celery.state": "FAILURE"' in log
    assert reader.run("python -m pytest -q -W ignore test_proj.py").count("1 passed")
