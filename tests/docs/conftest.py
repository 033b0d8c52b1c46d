"""The reader of a page, who has a database and a folder of their own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .reader import Reader


@pytest.fixture
def reader(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    empty_dsn: str,
    celery_url: Callable[[str], str],
) -> Iterator[Reader]:
    """Follows the ``PAGE`` of the test's module, and must have used all of it."""
    reader = Reader(request.module.PAGE, tmp_path, empty_dsn, celery_url(empty_dsn))
    yield reader
    reader.stop_worker()
    assert not reader.unused()
