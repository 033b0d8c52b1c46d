"""Results in the table of django-celery-results."""

import asyncio

from celery import Celery

from aioabort import AbortClient
from tests.support.django_results import lead_django_to, migrate

from .place import make_app

END = """
    -- $1 task id
    INSERT INTO django_celery_results_taskresult (
        task_id, status, result, date_created, date_done, content_type, content_encoding
    )
    VALUES ($1, 'SUCCESS', 'null', now(), now(), 'application/json', 'utf-8')
    ON CONFLICT (task_id)
    DO UPDATE SET status = 'SUCCESS', result = 'null', date_done = now()
"""


def make_orm_app(dsn: str) -> Celery:
    """Return an app whose results the ORM stores at *dsn*, for this process alone."""
    lead_django_to(dsn)
    return make_app(dsn, result_backend="django-db", aioabort_dsn=dsn)


def create_orm_tables(dsn: str) -> None:
    """Create the tables of django-celery-results and ours."""
    migrate(dsn)
    asyncio.run(_create_request_table(make_orm_app(dsn)))


async def _create_request_table(app: Celery) -> None:
    async with AbortClient(app):
        pass
