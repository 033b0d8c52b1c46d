"""A Django project: from startproject to a task that is cancelled."""

import json

from tests.support.django_project import databases_of

from .reader import Reader
from .servers import serving

PAGE = "docs/how-to/django.md"

BROKER = 'CELERY_BROKER_URL = "redis://localhost"'

#: What the page shows of DATABASES.
ADDRESS = """        "NAME": "postgres",
        "USER": "postgres",
        "HOST": "localhost",
"""

#: Shows what the async views and the admin's action answer to the owner of a job.
DRIVER = """
import asyncio, json, os

os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
import django
django.setup()
from django.conf import settings
settings.ALLOWED_HOSTS = ["*"]
from django.contrib.auth.models import User
from django.test import AsyncClient, Client
from aioabort import sync
from jobs.models import Job
from jobs.services import remove
from jobs.tasks import index

alice = User.objects.get()
index.backend.store_result("ended", 1, "SUCCESS")
jobs = [Job.objects.create(task_id=name, user=alice) for name in ("a", "b", "ended")]
foreign = Job.objects.create(task_id="foreign", user=User.objects.create_user("eve"))

async def main():
    client = AsyncClient()
    await client.aforce_login(alice)
    answers = [
        (await client.post(f"/jobs/{name}/cancel-async")).status_code
        for name in ("a", "ended", "foreign")
    ]
    stream = await client.get("/jobs/ended/events")
    events = b"".join([part async for part in stream.streaming_content])
    return answers, events.decode()

answers, events = asyncio.run(main())
remove(jobs[1])
admin = Client()
admin.force_login(alice)
jobs = admin.get("/admin/jobs/job/").content.decode()
print(json.dumps({
    "answers": answers,
    "events": events,
    "removed": sync.snapshot("b").request.reason,
    "is offered": "abort_selected_tasks" in jobs,
}))
"""


def test_django(reader: Reader) -> None:
    """Curl's user cancels a task, and the async views and the admin answer as well."""
    reader.replaced = {
        BROKER: "\n".join(
            f"CELERY_{key.upper()} = {reader.settings[key]!r}"
            for key in ("broker_url", "broker_transport_options")
        ),
        ADDRESS: repr(databases_of(reader.dsn)["default"])[1:-1] + ",\n",
        'app = Celery("mysite")': 'import folder_broker\napp = Celery("mysite")',
    }
    reader.follow(until="curl")
    server = ("django", "runserver", "--noreload", "--settings=mysite.settings")
    with serving(reader, *server, "{port}") as address:
        reader.replaced["localhost:8000"] = address
        reader.follow(until="cancel-async")
    reader.follow(until="manage.py test")
    reader.give("driver.py", DRIVER)
    printed = json.loads(reader.run("python -W ignore driver.py").splitlines()[-1])

    assert printed["answers"] == [202, 409, 404]
    assert printed["events"].startswith('data: {"task_id": "ended", "state": "SUCCESS"')
    assert printed["removed"] == "job removed"
    assert printed["is offered"]
    reader.follow()
