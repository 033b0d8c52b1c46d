"""Results that stay in Redis."""

from tests.support.brokers import redis_url

from .reader import Reader

PAGE = "docs/how-to/redis-results.md"


def test_redis_results(reader: Reader) -> None:
    """Any task is awaited, and an abort says who and why."""
    url = redis_url()
    reader.replaced["redis://localhost"] = url
    reader.settings["result_backend"] = url
    reader.settings["aioabort_dsn"] = reader.dsn
    reader.follow()
