"""The tutorial, from an empty folder to an aborted task."""

import pytest

from tests.support.brokers import redis_url

from .reader import Reader

PAGE = "docs/tutorial.md"


@pytest.mark.parametrize("results", ["postgresql", "redis"])
def test_tutorial(reader: Reader, results: str) -> None:
    """Its commands print what it shows, wherever the results are."""
    reader.follow(until="with results in Redis")
    variant = reader.next()
    if results == "redis":
        url = redis_url()
        reader.settings |= {"result_backend": url, "aioabort_dsn": reader.dsn}
        # The page's own addresses: those of the test are set after them.
        before, rest = reader.files["proj.py"].split("app = Celery(", 1)
        _, after = rest.split("\n)\n", 1)
        reader.give("proj.py", f"{before}{variant.text}{after}")
    reader.follow()
