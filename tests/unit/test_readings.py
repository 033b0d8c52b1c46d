"""The errors of a read of Celery's result backend."""

from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from aioabort import StoreError, StoreUnavailable
from aioabort.external.readings import unreadable
from aioabort.external.redis_server import RedisServer
from aioabort.timing import Timing


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("no"),
        redis.ConnectionError("no"),
        redis.TimeoutError("no"),
        redis.exceptions.BusyLoadingError("LOADING"),
        redis.ReadOnlyError("no"),
        redis.sentinel.MasterNotFoundError("no"),
    ],
)
def test_an_outage_may_pass(error: Exception) -> None:
    assert isinstance(unreadable(error), StoreUnavailable)


@pytest.mark.parametrize(
    "error",
    [
        redis.AuthenticationError("wrong"),
        redis.exceptions.NoPermissionError("no"),
        ImproperlyConfigured("no"),
        AttributeError("a bug"),
        AssertionError("a bug"),
    ],
)
def test_a_refusal_and_a_bug_do_not(error: Exception) -> None:
    problem = unreadable(error)
    assert isinstance(problem, StoreError)
    assert not isinstance(problem, StoreUnavailable)
    assert "result_backend" in str(problem)
    assert problem.__cause__ is error


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("redis://:s3cretWord@127.0.0.1:1", {}),
        ("sentinel://:s3cretWord@127.0.0.1:1", {}),
        ("sentinel://127.0.0.1:1", {"sentinel_kwargs": {"password": "s3cretWord"}}),
    ],
)
def test_a_password_that_the_library_shows_is_hidden(
    url: str, options: dict[str, Any]
) -> None:
    """redis-py 6 shows the parameters of the sentinels that it could not reach."""
    app = Celery("tests", backend=url, set_as_current=False)
    app.conf.result_backend_transport_options = {"master_name": "m"} | options
    server = RedisServer(app.backend, Timing())
    error = redis.ConnectionError("<Connection(password=s3cretWord)>")
    problem = unreadable(error, server.hide_secrets)
    assert "s3cretWord" not in str(problem)
    assert problem.__cause__ is None
