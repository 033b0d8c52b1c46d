"""Unit tests start no server: each fixture that would start one is an error here."""

from collections.abc import Iterator
from typing import NoReturn

import pytest
from celery import Celery


@pytest.fixture(scope="session")
def server() -> NoReturn:
    """Replaces the server of the other folders."""
    pytest.fail("tests/unit starts no server: move the test to tests/integration")


@pytest.fixture(scope="session")
def aioabort_server(server: object) -> object:
    """Replaces the server of aioabort's own pytest fixtures."""
    return server


@pytest.fixture
def app() -> Iterator[Celery]:
    """An app whose services do not exist: a test that uses one of them fails."""
    app = Celery(
        "tests",
        broker="redis://nowhere.invalid",
        backend="db+postgresql+psycopg://nowhere.invalid/none",
        set_as_current=False,
    )
    yield app
    app.close()
