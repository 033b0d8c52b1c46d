"""The reader of a page, with a database and a folder of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.databases import celery_url

from .reader import Reader


@pytest.fixture
def reader(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    empty_dsn: str,
) -> Iterator[Reader]:
    """Follow the ``PAGE`` of the test's module; fail if an example was not used."""
    reader = Reader(request.module.PAGE, tmp_path, empty_dsn, celery_url(empty_dsn))
    yield reader
    reader.stop_worker()
    assert not reader.unused()
