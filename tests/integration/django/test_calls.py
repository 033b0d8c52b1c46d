"""Calls from views, threads and transactions of a project."""

from tests.support.django_project import Project

VIEWS = """
from asgiref.sync import async_to_sync
from django.http import HttpResponse
from django.urls import path

from aioabort import AbortableAsyncResult, sync
from mysite import celery_app


def blocking(request, task_id):
    return HttpResponse(sync.abort(task_id, requested_by="view").answer)


async def awaiting(request, task_id):
    result = AbortableAsyncResult(task_id, app=celery_app)
    return HttpResponse((await result.abort(requested_by="view")).answer)


def bridging(request, task_id):
    result = AbortableAsyncResult(task_id, app=celery_app)
    return HttpResponse(async_to_sync(result.abort)().answer)


urlpatterns = [
    path("blocking/<task_id>", blocking),
    path("awaiting/<task_id>", awaiting),
    path("bridging/<task_id>", bridging),
]
"""


def test_views_abort_under_wsgi_and_asgi(migrated: Project) -> None:
    """Both kinds of view, by Django's handlers for both kinds of server."""
    migrated.write("mysite/urls.py", VIEWS)
    answers = migrated.run("""
import asyncio
from django.test import AsyncClient, Client

PATHS = ("blocking", "awaiting", "bridging")

async def main():
    client = AsyncClient()
    return [(await client.get(f"/{path}/asgi")).content.decode() for path in PATHS]

show([
    [Client().get(f"/{path}/wsgi").content.decode() for path in PATHS],
    asyncio.run(main()),
])
""")

    assert answers == [["requested", "requested_before", "requested_before"]] * 2


def test_async_to_sync_leaks_nothing(migrated: Project) -> None:
    """Each call has an event loop of its own, whose client and connections it ends."""
    left = migrated.run("""
import asyncio, gc, threading, time, weakref
from asgiref.sync import async_to_sync
from django.db import connection
from aioabort import AbortableAsyncResult
from aioabort.client import result as results
from mysite import celery_app

loops = []

async def snapshot(number):
    loops.append(weakref.ref(asyncio.get_running_loop()))
    return await AbortableAsyncResult(f"task-{number}", app=celery_app).snapshot()

threads = threading.active_count()
states = {async_to_sync(snapshot)(number).state for number in range(50)}

def connections():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity "
                       "WHERE datname = current_database() AND pid <> pg_backend_pid()")
        return cursor.fetchone()[0]

deadline = time.monotonic() + 30
while connections() and time.monotonic() < deadline:
    time.sleep(0.01)  # PostgreSQL learns of an end a moment later
gc.collect()
show({
    "states": list(states),
    "connections": connections(),
    "clients": len(results._clients),
    "loops": sum(loop() is not None for loop in loops),
    "threads": threading.active_count() - threads,
})
""")

    assert left == {
        "states": ["PENDING"],
        "connections": 0,
        "clients": 0,
        "loops": 0,
        "threads": 0,
    }


def test_on_commit(migrated: Project) -> None:
    """An abort in on_commit() is made if the transaction commits, and only then."""
    aborted = migrated.run("""
from functools import partial
from django.db import transaction
from aioabort import sync
from aioabort.django.models import AbortRequest

def cancel(task_id, *, fail):
    with transaction.atomic():
        transaction.on_commit(partial(sync.abort, task_id))
        before = AbortRequest.objects.filter(task_id=task_id).count()
        if fail:
            raise ValueError
    return before

before = cancel("committed", fail=False)
try:
    cancel("rolled back", fail=True)
except ValueError:
    pass
show([before, list(AbortRequest.objects.values_list("task_id", flat=True))])
""")

    assert aborted == [0, ["committed"]]


def test_an_abort_does_not_wait_for_the_transaction(migrated: Project) -> None:
    """It has a connection of its own: what is rolled back around it is not undone."""
    aborted = migrated.run("""
from django.db import transaction
from aioabort import sync
from aioabort.django.models import AbortRequest

with transaction.atomic():
    sync.abort("at once")
    transaction.set_rollback(True)
show(list(AbortRequest.objects.values_list("task_id", flat=True)))
""")

    assert aborted == ["at once"]


def test_threads_have_the_app(migrated: Project) -> None:
    """A server's threads did not import the project, and need no ``app=``."""
    answers = migrated.run("""
from concurrent.futures import ThreadPoolExecutor
from aioabort import sync

with ThreadPoolExecutor(1) as executor:
    show(executor.submit(lambda: sync.abort("some-id").answer).result())
""")

    assert answers == "requested"


def test_another_alias(migrated: Project, empty_dsn: str) -> None:
    """Requests, the model and the migration use the database of AIOABORT_DATABASE."""
    name = empty_dsn.rpartition("/")[2].partition("?")[0]
    migrated.configure(
        "DATABASES['jobs'] = {**DATABASES['default'], "
        f"'NAME': {name!r}}}\nAIOABORT_DATABASE = 'jobs'"
    )
    migrated.manage("migrate", "aioabort", "--database=jobs", "--verbosity=0")
    found = migrated.run("""
from django.db import connections
from aioabort import sync
from aioabort.django.models import AbortRequest

sync.abort("one")
with connections["jobs"].cursor() as cursor:
    cursor.execute("SELECT task_id FROM aioabort_request")
    rows = cursor.fetchall()
show([rows, AbortRequest.objects.count(), AbortRequest.objects.using("default").count()])
""")

    assert found == [[["one"]], 1, 0]
