"""The brokers of workers under test: Redis, or a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
import redis

REDIS_VARIABLE = "AIOABORT_TEST_REDIS"

#: The folder of the kombu transport "folder", which workers must be able to import.
FOLDER_TRANSPORT = Path(__file__).parents[1] / "acceptance" / "project"


def redis_url() -> str:
    """Return the address of a Redis that answers; skip the test if there is none."""
    url = os.environ.get(REDIS_VARIABLE, "redis://127.0.0.1:6379/7")
    with redis.Redis.from_url(url) as server:
        try:
            server.ping()
        except redis.ConnectionError as error:
            pytest.skip(f"no Redis at ${REDIS_VARIABLE} or {url}: {error}")
    return url


@contextmanager
def redis_keys() -> Iterator[tuple[str, dict[str, str]]]:
    """Return a Redis and the options that keep our keys apart; delete those keys."""
    url = redis_url()
    prefix = f"aioabort-{uuid4().hex}-"
    yield url, {"global_keyprefix": prefix}
    with redis.Redis.from_url(url) as server:
        for key in server.scan_iter(f"{prefix}*"):
            server.delete(key)


def folder_broker(folder: Path) -> dict[str, object]:
    """Return the settings of an app whose broker keeps its messages in *folder*."""
    for name in ("queue", "processed"):
        (folder / name).mkdir(parents=True)
    options = {
        "control_folder": str(folder / "control"),
        "data_folder_in": str(folder / "queue"),
        "data_folder_out": str(folder / "queue"),
        "polling_interval": 0.01,
        # Without it, messages move through the folder that all temporary files share.
        "processed_folder": str(folder / "processed"),
        "store_processed": True,
    }
    return {"broker_url": "folder://", "broker_transport_options": options}
