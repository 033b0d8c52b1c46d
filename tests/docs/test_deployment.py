"""The release step, the health check, the examples of units, and the connections."""

import configparser
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import yaml

from aioabort.cli.group import main
from tests.support.databases import celery_url
from tests.support.waiting import BOUND

from .pages import PAGES
from .reader import Reader

PAGE = "docs/how-to/deployment.md"

CONNECTIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'aioabort'
"""

#: Starts as many tasks as the worker has children.
START_TWO = """
from proj import index
print(index.delay(100_000).id, index.delay(100_000).id)
"""

#: Sends what beat would send.
SEND_CLEANUP = """
import asyncio
from aioabort import AbortClient
from proj import app

async def main():
    [entry] = app.conf.beat_schedule.values()
    async with AbortClient(app) as client:
        result = await client.send(app.signature(entry["task"]))
        print(await result.wait(timeout=60))

asyncio.run(main())
"""

#: Prints the connections of a client that has opened, and after many calls at once.
CLIENT = f"""
import asyncio
import psycopg
from aioabort import AbortClient
from proj import app

def count():
    address = app.conf.result_backend.partition("+")[2]
    with psycopg.connect(address) as connection:
        return connection.execute({CONNECTIONS!r}).fetchone()[0]

async def main():
    async with AbortClient(app) as client:
        while client.health().mode != "notify":
            await asyncio.sleep(0.05)
        print(count(), end=" ")
        await asyncio.gather(*(client.abort(str(number)) for number in range(100)))
        print(count())

asyncio.run(main())
"""


def example(language: str) -> str:
    """Return the page's one example in *language*."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    [text] = fence.findall(PAGES[PAGE].read_text())
    return str(text)


def own_backend(dsn: str) -> str:
    """Return the URL by which aioabort's own backend stores results, as on the page."""
    return dsn.replace("postgresql", "aioabort+postgresql", 1)


def test_deployment(reader: Reader) -> None:
    """The table is created once, the cleanup runs, and connections are that few."""
    reader.settings["result_backend"] = own_backend(reader.dsn)
    reader.follow()

    reader.start_worker("celery -A proj worker --concurrency=2")
    reader.give("cleanup.py", SEND_CLEANUP)
    assert reader.run("python cleanup.py") == "0\n"
    reader.give("start.py", START_TWO)
    reader.variables["IDS"] = reader.run("python start.py").strip()
    until_connections_are(2, reader.dsn)
    assert "aborted" in reader.run("celery -A proj aioabort abort $IDS --wait 60")

    reader.stop_worker()
    until_connections_are(0, reader.dsn)
    reader.give("client.py", CLIENT)
    opened, most = map(int, reader.run("python client.py").split())
    assert opened == 2
    assert 2 < most <= 11


def until_connections_are(number: int, dsn: str) -> None:
    """Return when aioabort has *number* connections to the database."""
    deadline = time.monotonic() + BOUND
    with psycopg.connect(dsn, autocommit=True) as connection:
        while connection.execute(CONNECTIONS).fetchone() != (number,):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_exit_codes_of_the_doctor(tmp_path: Path, empty_dsn: str) -> None:
    """Each trouble has the code that the page says."""
    reader = Reader(PAGE, tmp_path, empty_dsn, celery_url(empty_dsn))
    reader.follow(until="init-db")
    url = own_backend(empty_dsn)
    troubles: dict[int, dict[str, object]] = {
        0: {},
        1: {"aioabort_create_tables": False},
        2: {"aioabort_pol_interval": 1},
        3: {"result_backend": url.replace("/aioabort_", "/missing_")},
        4: {"result_backend": "aioabort+postgresql://postgres@127.0.0.1:1/postgres"},
    }
    settings = {**reader.settings, "result_backend": url}
    for code, trouble in troubles.items():
        reader.settings = settings | trouble
        reader.give("proj.py", reader.files["proj.py"])
        said = reader.run("celery -A proj aioabort doctor; echo $?")
        assert said.splitlines()[-1] == str(code), said


def test_unit_of_systemd() -> None:
    """It can be parsed, and lets running tasks finish."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(example("systemd"))

    assert unit.sections() == ["Unit", "Service", "Install"]
    assert unit["Service"]["KillMode"] == "mixed"
    assert " -A proj worker " in unit["Service"]["ExecStart"]


def test_services_of_compose() -> None:
    """Each service that another waits for is there, and so is each command."""
    compose: dict[str, Any] = yaml.safe_load(example("yaml"))
    services = compose["services"]

    for service in services.values():
        assert set(service.get("depends_on", {})) <= set(services)
        words = [
            *service.get("command", []),
            *service.get("healthcheck", {"test": []})["test"],
        ]
        for before, word in pairwise(words):
            assert before != "aioabort" or word in main.commands
    assert services["init-db"]["command"][-1] == "init-db"
    assert services["worker"]["healthcheck"]["test"][-1] == "doctor"
