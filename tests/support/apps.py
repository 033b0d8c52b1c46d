"""Celery apps and clients that publish in memory. A pytest plugin."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from aioabort import AbortClient
from tests.support.databases import celery_url

#: Makes a Celery app that keeps its results at a DSN; the rest are settings.
MakeApp = Callable[..., Celery]


@pytest.fixture
def make_app() -> Iterator[MakeApp]:
    """Makes apps: ``make_app(dsn, aioabort_poll_interval=0.1)``."""
    apps: list[Celery] = []

    def make(dsn: str, **settings: Any) -> Celery:
        app = Celery(
            "tests",
            broker="memory://",
            backend=celery_url(dsn),
            # Code that wrongly uses the current app must not find this one.
            set_as_current=False,
        )
        app.conf.update(settings)
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close()


@pytest.fixture
def app(dsn: str, make_app: MakeApp) -> Celery:
    """An app that has no worker and keeps its results at ``dsn``."""
    return make_app(dsn)


@pytest.fixture
async def client(app: Celery) -> AsyncIterator[AbortClient]:
    """An open client of ``app``."""
    async with AbortClient(app) as client:
        yield client
